//! Inside the guest: the NIC, the test file and its pages, the kernel's books, one whole transfer, the one beyond the kernel,
//! many flows at once, PID 1.

pub mod agent;
pub mod books;
pub mod buffer;
pub mod disk;
pub mod file;
pub mod flows;
pub mod init;
pub mod mapping;
pub mod nic;
pub mod pages;
pub mod port;
mod rehearsal;
pub mod tls_records;
pub mod transfer;
pub mod userspace;
