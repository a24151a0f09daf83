//! The attempts in `vnic attach` and `vnic proxy`: by their main thread as soon as they are ready, and by a thread that is asked something
//! on the control socket.

use std::env;
use std::path::PathBuf;

use super::*;
use crate::attach;
use crate::observe::protocol::{Reply, Request};
use crate::proxy;
use crate::sandbox::Possible;
use crate::serve::control::Source;

/// Where an attempt is made, in the process of a test.
const PLACE: &str = "VNIC_TEST_PLACE";
/// Where its sockets are to be, and how they are found.
const FOLDER: &str = "XDG_RUNTIME_DIR";

/// How long it may take to be there, and to answer.
const ANSWERED: Duration = Duration::from_secs(20);

/// Who was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    AttachMain,
    AttachAnswers,
    ProxyMain,
    ProxyAnswers,
}

impl Place {
    /// What comes of the attempt here. What differs is what these are there for.
    fn expects(self, attempt: &Attempt) -> Outcome {
        match (self, attempt.name) {
            // Who follows rings is served by threads of its own. They have what those have that start them.
            (Place::AttachAnswers | Place::ProxyAnswers, "no_thread_is_started") => Outcome::works,
            _ => attempt.holds,
        }
    }
}

/// Who answers, and was taken over.
#[derive(Debug)]
struct TakenOver;

impl Source for TakenOver {
    fn answer(&self, _request: Request) -> Reply {
        attempt();
        Reply::Done
    }

    fn trace(&self, _stream: UnixStream, _admitted: Admitted, _wanted: trace::Wanted) {}
}

/// In the process of a test: what it was told.
fn attempt() {
    let name = env::var(ATTEMPT).unwrap();
    let attempt = all().into_iter().find(|attempt| attempt.name == name).unwrap();
    say(&format!("it said: {:?}", (attempt.attempt)(&env::var(ON).unwrap()).map_err(|error| error.raw_os_error())));
    std::process::exit(0);
}

/// Those of a worker, and to get out.
fn all() -> Vec<Attempt> {
    let tcp = Attempt {
        name: "nothing_is_connected_to",
        on: "127.0.0.1:9",
        holds: Outcome::refused,
        attempt: |address| TcpStream::connect(address).map(drop),
    };
    let bound = Attempt {
        name: "nowhere_is_listened",
        on: "127.0.0.1:0",
        holds: Outcome::refused,
        attempt: |address| TcpListener::bind(address).map(drop),
    };
    ATTEMPTS.iter().copied().chain([tcp, bound]).collect()
}

/// The process of a test: begins as the command does, and has the attempt made where it is to be.
fn take_over(place: Place) -> ! {
    let ram = RAM.get_or_init(|| GuestRam::new(1 << 20).unwrap());
    nix::unistd::ftruncate(ram.fd(), 0).unwrap();
    let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
    let path = |what: &str| folder.join(what);
    let control = path("control");
    if matches!(place, Place::AttachAnswers | Place::ProxyAnswers) {
        ask(control.clone());
    }
    let ready = || {
        if matches!(place, Place::AttachMain | Place::ProxyMain) {
            attempt();
        }
    };
    let taken_over: Arc<dyn Source> = Arc::new(TakenOver);
    let sandbox = sandbox::Mode::On;
    let ended = match place {
        Place::AttachMain | Place::AttachAnswers => {
            sandbox::set(sandbox, sandbox::Program::Attach);
            let options = attach::Options { pid: std::process::id(), control, sandbox };
            attach::look(&options, |_| taken_over, || false, ready).map_err(|error| error.to_string())
        }
        Place::ProxyMain | Place::ProxyAnswers => {
            let back_end = path("back-end");
            let options = proxy::Options { socket: path("socket"), back_end, control, device: None, sandbox };
            proxy::pass(&options, |_| taken_over, ready).map_err(|error| error.to_string())
        }
    };
    say(&format!("it ended: {ended:?}"));
    std::process::exit(0);
}

/// Asks on the control socket once it is there. This thread was there before, and gives up nothing.
fn ask(control: PathBuf) {
    std::thread::spawn(move || {
        let deadline = Instant::now() + ANSWERED;
        while Instant::now() < deadline {
            if let Ok(mut stream) = UnixStream::connect(&control) {
                writeln!(stream, r#"{{"request":"status"}}"#).unwrap();
                stream.set_read_timeout(Some(ANSWERED)).unwrap();
                // The C library has every thread change its identity where one asks for it.
                let interrupted = |error: io::Error| error.kind() == io::ErrorKind::Interrupted;
                while io::Read::read(&mut stream, &mut [0]).is_err_and(interrupted) {}
                break;
            }
            std::thread::yield_now();
        }
        say("nobody answered");
        std::process::exit(1);
    });
}

/// Has every attempt made there, each in a process of its own.
fn nothing_is_to_be_had(test: &str, place: Place) {
    if env::var(PLACE).is_ok_and(|told| told == format!("{place:?}")) {
        take_over(place);
    }
    let folder = env::temp_dir().join(format!("vnic-taken-over-{place:?}-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    for attempt in all() {
        let name = format!("serve::taken_over::elsewhere::{test}");
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "--nocapture", &name]).env(PLACE, format!("{place:?}")).env(FOLDER, &folder);
        let output = child.env(ATTEMPT, attempt.name).env(ON, attempt.on).output().unwrap();
        let (said, why) = (said(&output), format!("{place:?}, {}", attempt.name));
        match place.expects(&attempt) {
            // By the filter of system calls; what that lets through, by Landlock.
            Outcome::refused => {
                let by_filter = said.contains("it said: Err(Some(1))");
                let by_landlock =
                    said.contains("it said: Err(Some(13))") && Possible::on_this_kernel().landlock.is_some();
                assert!(by_filter || by_landlock, "{why}: {said}");
            }
            Outcome::killed => assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{why}: {said}"),
            Outcome::works => assert!(said.contains("it said: Ok(())"), "{why}: {said}"),
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn attachs_main_thread_gets_nowhere() {
    nothing_is_to_be_had("attachs_main_thread_gets_nowhere", Place::AttachMain);
}

#[test]
fn who_answers_for_attach_gets_nowhere() {
    nothing_is_to_be_had("who_answers_for_attach_gets_nowhere", Place::AttachAnswers);
}

#[test]
fn proxys_main_thread_gets_nowhere() {
    nothing_is_to_be_had("proxys_main_thread_gets_nowhere", Place::ProxyMain);
}

#[test]
fn who_answers_for_proxy_gets_nowhere() {
    nothing_is_to_be_had("who_answers_for_proxy_gets_nowhere", Place::ProxyAnswers);
}
