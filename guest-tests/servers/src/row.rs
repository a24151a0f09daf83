//! The rows: which server, with which configuration, fetched by which client.

/// A server in a variant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// How it is asked for: the server, or the server and the variant: `nginx`, `nginx-off`.
    pub(crate) name: &'static str,
    /// The Debian package, whose version stands in the table.
    pub(crate) package: &'static str,
    /// What the configuration has of the settings that matter here.
    pub(crate) setting: &'static str,
    /// What the server's manual has one expect of it.
    pub(crate) manual: &'static str,
    /// Configures and starts it, in the guest's shell. `DATA` is the published port that is the same on both sides.
    pub(crate) start: &'static str,
    /// Where it listens in the guest.
    pub(crate) port: u16,
    /// Who fetches the file.
    pub(crate) client: Client,
}

/// Who fetches the file, on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// `curl`, with this scheme.
    Curl(&'static str),
    /// `smbclient`
    Smb,
    /// `nfs-cp` of libnfs.
    Nfs,
    /// `rsync`, to its daemon.
    Rsync,
    /// `iperf3`, which counts bytes and keeps none. With these options.
    Iperf(&'static [&'static str]),
}

/// The server of a row's name.
pub(crate) fn server(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

const HTTP: Client = Client::Curl("http");
const HTTPS: Client = Client::Curl("https");

/// What most rows have.
const ROW: Row = Row { name: "", package: "", setting: "", manual: "", start: "", port: 80, client: HTTP };

const NGINX: Row = Row { package: "nginx", ..ROW };
const NGINX_TLS: Row = Row { port: 443, client: HTTPS, ..NGINX };
const APACHE: Row = Row { package: "apache2", ..ROW };
const LIGHTTPD: Row = Row { package: "lighttpd", ..ROW };
const TOMCAT: Row = Row { package: "tomcat10", port: 8080, ..ROW };
const VSFTPD: Row = Row { package: "vsftpd", port: 21, client: Client::Curl("ftp"), ..ROW };
const SAMBA: Row = Row { package: "samba", port: 445, client: Client::Smb, ..ROW };
const IPERF3: Row =
    Row { package: "iperf3", port: 5201, client: Client::Iperf(&[]), start: "iperf3 --server --daemon", ..ROW };

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "nginx",
        setting: "sendfile on (Debian's)",
        manual: "enables the use of sendfile()",
        start: "/srv/vnic/start nginx",
        ..NGINX
    },
    Row {
        name: "nginx-off",
        setting: "sendfile off",
        manual: "output_buffers, for reading from a disk",
        start: "sed -i 's/sendfile on/sendfile off/' /etc/nginx/nginx.conf && /srv/vnic/start nginx",
        ..NGINX
    },
    Row {
        name: "nginx-directio",
        setting: "sendfile on; directio 1m",
        manual: "O_DIRECT; disables sendfile for the request",
        start: "/srv/vnic/start nginx 'directio 1m;'",
        ..NGINX
    },
    Row {
        name: "nginx-tls",
        setting: "ssl; sendfile on",
        manual: "says nothing of sendfile with ssl",
        start: "/srv/vnic/start nginx-tls",
        ..NGINX_TLS
    },
    Row {
        name: "nginx-ktls",
        setting: "ssl; sendfile on; ssl_conf_command Options KTLS",
        manual: "its changes: support for SSL_sendfile()",
        start: "modprobe tls && /srv/vnic/start nginx-tls 'ssl_conf_command Options KTLS;'",
        ..NGINX_TLS
    },
    Row {
        name: "apache",
        setting: "EnableSendfile Off (the default)",
        manual: "EnableMMAP On: may map a file that it reads",
        start: "/srv/vnic/start apache 'EnableSendfile Off'",
        ..APACHE
    },
    Row {
        name: "apache-on",
        setting: "EnableSendfile On",
        manual: "may use the kernel's sendfile support",
        start: "/srv/vnic/start apache 'EnableSendfile On'",
        ..APACHE
    },
    Row {
        name: "lighttpd",
        setting: "network-backend \"sendfile\" (the default)",
        manual: "names it, and prefers the default",
        start: "/srv/vnic/start lighttpd sendfile",
        ..LIGHTTPD
    },
    Row {
        name: "lighttpd-writev",
        setting: "network-backend \"writev\"",
        manual: "names it",
        start: "/srv/vnic/start lighttpd writev",
        ..LIGHTTPD
    },
    Row {
        name: "lighttpd-write",
        setting: "network-backend \"write\"",
        manual: "names it",
        start: "/srv/vnic/start lighttpd write",
        ..LIGHTTPD
    },
    Row {
        name: "tomcat",
        setting: "NIO, useSendfile true (the default)",
        manual: "sendfile above 48 KiB; no compression then",
        start: "/srv/vnic/start tomcat true",
        ..TOMCAT
    },
    Row {
        name: "tomcat-off",
        setting: "NIO, useSendfile false",
        manual: "disables sendfile",
        start: "/srv/vnic/start tomcat false",
        ..TOMCAT
    },
    Row {
        name: "vsftpd",
        setting: "use_sendfile YES (the default)",
        manual: "for testing the benefit of sendfile()",
        start: "/srv/vnic/start vsftpd DATA YES",
        ..VSFTPD
    },
    Row {
        name: "vsftpd-off",
        setting: "use_sendfile NO",
        manual: "without it",
        start: "/srv/vnic/start vsftpd DATA NO",
        ..VSFTPD
    },
    Row {
        name: "samba",
        setting: "use sendfile = no (the default)",
        manual: "not the sendfile system call",
        start: "/srv/vnic/start samba 'use sendfile = no'",
        ..SAMBA
    },
    Row {
        name: "samba-on",
        setting: "use sendfile = yes",
        manual: "sendfile() for ReadAndX, ReadRaw of files with an exclusive oplock",
        start: "/srv/vnic/start samba 'use sendfile = yes'",
        ..SAMBA
    },
    Row {
        name: "samba-on-noaio",
        setting: "use sendfile = yes, aio read size = 0",
        manual: "the same; 0: no async I/O",
        start: "/srv/vnic/start samba 'use sendfile = yes' 'aio read size = 0'",
        ..SAMBA
    },
    Row {
        name: "nfs",
        package: "linux-image-amd64",
        setting: "NFS 4.0, rsize as the client asks",
        manual: "says nothing of it",
        start: "/srv/vnic/start nfs",
        port: 2049,
        client: Client::Nfs,
    },
    Row {
        name: "go",
        package: "golang-go",
        setting: "http.FileServer",
        manual: "TCPConn implements io.ReaderFrom",
        start: "/srv/vnic/start go",
        ..ROW
    },
    Row {
        name: "node",
        package: "nodejs",
        setting: "createReadStream().pipe(response)",
        manual: "highWaterMark: 64 KiB",
        start: "/srv/vnic/start node",
        ..ROW
    },
    Row {
        name: "python",
        package: "python3",
        setting: "python3 -m http.server",
        manual: "says nothing of it",
        start: "/srv/vnic/start python",
        ..ROW
    },
    Row { name: "iperf3", setting: "-R", manual: "the usual write(2)", ..IPERF3 },
    Row {
        name: "iperf3-Z",
        setting: "-R -Z",
        manual: "a \"zero copy\" method, such as sendfile(2)",
        client: Client::Iperf(&["--zerocopy"]),
        ..IPERF3
    },
    Row {
        name: "rsync",
        package: "rsync",
        setting: "daemon, no compression",
        manual: "says nothing of it",
        start: "/srv/vnic/start rsync",
        port: 873,
        client: Client::Rsync,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_says_what_it_is() {
        let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
        for row in ROWS {
            assert!(![row.package, row.setting, row.manual, row.start].contains(&""), "{}", row.name);
        }
    }

    #[test]
    fn a_server_stands_before_its_variants() {
        for row in ROWS {
            assert!(names_of(server(row.name)).next() == Some(server(row.name)), "{}", row.name);
        }
        fn names_of(name: &str) -> impl Iterator<Item = &'static str> {
            ROWS.iter().map(|row| row.name).filter(move |row| server(row) == name)
        }
    }
}
