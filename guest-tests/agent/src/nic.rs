//! The guest's NIC by ioctl: addresses, flags, routes (`ip addr`, `ip link`, `ip route`), offloads (`ethtool -K`), queue
//! pairs (`ethtool -L`) and ring sizes (`ethtool -G`).
//!
//! Limits: legacy `ethtool_value` commands, which every kernel still answers; nothing here needs netlink.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vnic_experiment::run::NicState;
use vnic_experiment::wire::NicWish;

/// The NIC under test.
pub const NAME: &str = "eth0";

/// An Ethernet's packets, bytes.
const ETHERNET_MTU: u32 = 1500;

/// `ETHTOOL_Gxxx` and `ETHTOOL_Sxxx` of one switch (linux/ethtool.h).
#[derive(Debug, Clone, Copy)]
struct Switch {
    name: &'static str,
    get: u32,
    set: u32,
}

const TX_CSUM: Switch = Switch { name: "csum", get: 0x16, set: 0x17 };
const SG: Switch = Switch { name: "sg", get: 0x18, set: 0x19 };
const TSO: Switch = Switch { name: "tso", get: 0x1e, set: 0x1f };

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels` and `struct ethtool_ringparam`: a command, four limits, four figures.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct EthtoolTable {
    command: u32,
    most: [u32; 4],
    now: [u32; 4],
}

const GET_RINGS: u32 = 0x10;
const SET_RINGS: u32 = 0x11;
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;
/// Where `EthtoolTable::now` has the receive and the transmit ring, and the queue pairs ("combined").
const RX_RING: usize = 0;
const TX_RING: usize = 3;
const COMBINED: usize = 3;

/// A figure that can be changed, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// As it is.
    pub now: u32,
    /// At most.
    pub most: u32,
}

/// `struct in6_ifreq`.
#[repr(C)]
struct In6Request {
    address: libc::in6_addr,
    prefix_length: u32,
    index: i32,
}

/// An interface, and the sockets whose ioctls reach it.
#[derive(Debug)]
pub struct Nic {
    name: String,
    inet: OwnedFd,
}

/// What an ioctl that adds something came to: that it was there already is as good.
fn or_there(done: libc::c_int) -> io::Result<()> {
    match io::Error::last_os_error() {
        _ if done == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

impl Nic {
    /// The interface of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn open(name: &str) -> Result<Nic> {
        ensure!(
            fs::exists(format!("/sys/class/net/{name}"))?,
            "there is no network interface {name}: was virtio_net loaded, and did QEMU get a virtio-net-pci device?"
        );
        Nic::open_unchecked(name)
    }

    /// The interface of this name; that there is none shows at the first use. For network namespaces, whose interfaces
    /// are not in the /sys of the others.
    ///
    /// # Errors
    /// No interface can have this name.
    pub fn open_unchecked(name: &str) -> Result<Nic> {
        ensure!(name.len() < libc::IFNAMSIZ, "interface name {name:?} is too long");
        let inet = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .context("a socket for interface ioctls")?;
        Ok(Nic { name: name.to_owned(), inet })
    }

    /// Gives it an address and brings it up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn up_with(&self, address: Ipv4Addr, netmask: Ipv4Addr) -> Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = sockaddr(address);
        self.ioctl(libc::SIOCSIFADDR, &mut request).with_context(|| format!("address {address}"))?;
        let mut request = self.request();
        request.ifr_ifru.ifru_netmask = sockaddr(netmask);
        self.ioctl(libc::SIOCSIFNETMASK, &mut request).with_context(|| format!("netmask {netmask}"))?;
        self.up()
    }

    /// Brings it up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn up(&self) -> Result<()> {
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFFLAGS, &mut request).context("flags")?;
        // SAFETY: SIOCGIFFLAGS filled this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request).context("bring up")
    }

    /// Sets the largest packet, headers of IP's own included.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = mtu.cast_signed();
        self.ioctl(libc::SIOCSIFMTU, &mut request).with_context(|| format!("packets of {mtu} bytes"))
    }

    /// Adds an IPv6 address.
    ///
    /// # Errors
    /// The kernel's refusal; a kernel without IPv6.
    pub fn add_ipv6(&self, address: Ipv6Addr, prefix_length: u32) -> Result<()> {
        let inet6 = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .context("an IPv6 socket for interface ioctls")?;
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFINDEX, &mut request).context("index")?;
        // SAFETY: SIOCGIFINDEX filled this member of the union.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        let address6 = libc::in6_addr { s6_addr: address.octets() };
        let request = In6Request { address: address6, prefix_length, index };
        // SAFETY: SIOCSIFADDR on an IPv6 socket reads one in6_ifreq, which lives here.
        let done = unsafe { libc::ioctl(inet6.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) };
        or_there(done).with_context(|| format!("address {address}/{prefix_length}"))
    }

    /// Everything that is not local goes to this gateway.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn default_route(&self, gateway: Ipv4Addr) -> Result<()> {
        // SAFETY: rtentry is plain data (numbers, pointers) for which zero is a value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = sockaddr(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT reads one rtentry, which lives here.
        let done = unsafe { libc::ioctl(self.inet.as_raw_fd(), libc::SIOCADDRT, &raw const route) };
        or_there(done).with_context(|| format!("default route by {gateway}"))
    }

    /// What the NIC does now.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn state(&self) -> Result<NicState> {
        Ok(NicState { csum: self.get(TX_CSUM)?, sg: self.get(SG)?, tso: self.get(TSO)? })
    }

    /// Sets the switches as wished, reads them back. What is not wished for goes to its default, which is on, where
    /// the device offers it.
    ///
    /// # Errors
    /// A wish that the NIC does not fulfil.
    pub fn apply(&self, wish: NicWish) -> Result<NicState> {
        // On before off, and checksum before what depends on it: the kernel drops TSO with SG, and remembers that it
        // was wanted.
        for (switch, wished) in [(TX_CSUM, wish.csum), (SG, wish.sg), (TSO, wish.tso)] {
            if wished != Some(false) {
                // A device that does not offer it makes this fail; reading back shows it.
                let _ = self.set(switch, true);
            }
        }
        for (switch, wished) in [(TSO, wish.tso), (SG, wish.sg), (TX_CSUM, wish.csum)] {
            // Off already (not offered, say) is as wished, and need not be settable.
            if wished == Some(false) && self.get(switch)? {
                self.set(switch, false).with_context(|| format!("switch {} off", switch.name))?;
            }
        }
        self.set_mtu(wish.mtu.unwrap_or(ETHERNET_MTU))?;
        let state = self.state()?;
        for (switch, wished, is) in
            [(SG, wish.sg, state.sg), (TX_CSUM, wish.csum, state.csum), (TSO, wish.tso, state.tso)]
        {
            if let Some(wished) = wished
                && wished != is
            {
                let (wished, is) = if wished { ("on", "off") } else { ("off", "on") };
                bail!("{} of {} was to be {wished} and is {is}", switch.name, self.name);
            }
        }
        Ok(state)
    }

    fn get(&self, switch: Switch) -> Result<bool> {
        let mut value = EthtoolValue { command: switch.get, data: 0 };
        self.ethtool(&mut value).with_context(|| format!("read {} of {}", switch.name, self.name))?;
        Ok(value.data != 0)
    }

    fn set(&self, switch: Switch, on: bool) -> Result<()> {
        let mut value = EthtoolValue { command: switch.set, data: u32::from(on) };
        self.ethtool(&mut value).with_context(|| format!("switch {} of {}", switch.name, self.name))
    }

    /// Queue pairs in use.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn pairs(&self) -> Result<Figure> {
        let EthtoolTable { most, now, .. } = self.table(GET_CHANNELS).context("read the queue pairs")?;
        Ok(Figure { now: now[COMBINED], most: most[COMBINED] })
    }

    /// Uses this many queue pairs (`ethtool -L NAME combined N`).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_pairs(&self, pairs: u32) -> Result<()> {
        let mut table = self.table(GET_CHANNELS).context("read the queue pairs")?;
        table.command = SET_CHANNELS;
        table.now[COMBINED] = pairs;
        self.ethtool(&mut table).with_context(|| format!("use {pairs} queue pairs"))
    }

    /// Sizes of the receive and the transmit rings.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rings(&self) -> Result<[Figure; 2]> {
        let EthtoolTable { most, now, .. } = self.table(GET_RINGS).context("read the ring sizes")?;
        Ok([RX_RING, TX_RING].map(|at| Figure { now: now[at], most: most[at] }))
    }

    /// Makes all rings of these sizes (`ethtool -G NAME rx N tx N`): each queue is reset on its own.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn set_rings(&self, receive: u32, transmit: u32) -> Result<()> {
        let mut table = self.table(GET_RINGS).context("read the ring sizes")?;
        table.command = SET_RINGS;
        table.now[RX_RING] = receive;
        table.now[TX_RING] = transmit;
        self.ethtool(&mut table).with_context(|| format!("rings of {receive} and {transmit}"))
    }

    fn table(&self, command: u32) -> Result<EthtoolTable> {
        let mut table = EthtoolTable { command, ..EthtoolTable::default() };
        self.ethtool(&mut table)?;
        Ok(table)
    }

    /// `value` is one of linux/ethtool.h's structs, with the command that belongs to it in front.
    fn ethtool<T>(&self, value: &mut T) -> Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_data = std::ptr::from_mut(value).cast();
        self.ioctl(libc::SIOCETHTOOL, &mut request)
    }

    /// An ioctl of the `ifreq` family.
    fn ioctl(&self, number: libc::Ioctl, request: &mut libc::ifreq) -> Result<()> {
        // SAFETY: every caller passes a number whose argument is one ifreq, with the union member it reads set; a
        // pointer in it (SIOCETHTOOL) refers to a struct that outlives the call.
        let done = unsafe { libc::ioctl(self.inet.as_raw_fd(), number, std::ptr::from_mut(request)) };
        if done < 0 {
            return Err(io::Error::last_os_error()).with_context(|| self.name.clone());
        }
        Ok(())
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: ifreq is plain data for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *place = byte.cast_signed();
        }
        request
    }
}

/// An IPv4 address as the ioctls take it.
fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let address = nix::sys::socket::SockaddrIn::from(SocketAddrV4::new(address, 0));
    // SAFETY: sockaddr_in and sockaddr have the same size, and both are plain data.
    unsafe { std::mem::transmute(*address.as_ref()) }
}
