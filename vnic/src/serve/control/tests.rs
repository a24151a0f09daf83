//! The control socket's threads and clients.

use std::io::{self, BufRead, BufReader};

use super::socket::accepted;
use super::*;
use crate::backend::About;

#[test]
fn a_host_without_file_descriptors_is_asked_again_after_a_pause() {
    let error = |errno| Err(io::Error::from_raw_os_error(errno));
    let mut said = vec![Ok(7), error(libc::ECONNABORTED), error(libc::ENFILE), error(libc::EMFILE)];
    let mut pauses = 0;
    assert_eq!(accepted(|| said.pop().unwrap(), || pauses += 1), Some(7));
    assert_eq!(pauses, 2);
    assert_eq!(accepted(|| error(libc::EINVAL), || pauses += 1), None::<i32>);
}

#[test]
fn one_client_too_many_is_told_so_and_the_next_after_one_left_is_served() {
    let path = std::env::temp_dir().join(format!("vnic-control-{}", std::process::id()));
    let shared = Arc::new(Shared::new(About::default(), ["receiveq0".to_owned()], Vec::new()));
    let socket = ControlSocket::bind(&path).unwrap();
    let device = Device { shared, workers: Arc::new(Workers::new(1)), pinger: None };
    socket.serve(Control::new(vec![device], None)).unwrap();
    let ask = |stream: &UnixStream| {
        let mut line = String::new();
        send(&mut stream.try_clone().unwrap(), &Request::Status).unwrap();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str::<Reply>(&line).unwrap()
    };
    let connect = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| connect()).collect();
    assert!(clients.iter().all(|client| matches!(ask(client), Reply::Status(_))));
    let mut line = String::new();
    BufReader::new(connect()).read_line(&mut line).unwrap();
    assert!(line.contains("16 clients are connected already"), "{line}");
    clients.pop();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // The thread has to hear that its client is gone.
        let client = connect();
        let mut line = String::new();
        let sent = send(&mut client.try_clone().unwrap(), &Request::Status);
        let heard = BufReader::new(&client).read_line(&mut line);
        if sent.is_ok() && heard.is_ok() && line.contains("\"reply\":\"status\"") {
            break;
        }
        assert!(Instant::now() < deadline, "not served within 20 s: {line}");
    }
    drop(socket);
    assert!(!path.exists());
}
