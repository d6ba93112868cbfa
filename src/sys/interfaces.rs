//! The network interfaces of this process's network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses that they have.
///
/// # Errors
/// The system's.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the pointer that is written to is ours; the list is freed below, once.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut next = first;
    // SAFETY: getifaddrs made the list, which ends with a null pointer and is not freed yet.
    while let Some(interface) = unsafe { next.as_ref() } {
        next = interface.ifa_next;
        // SAFETY: an address of that list is null, or as large as its family is.
        addresses.extend(unsafe { address(interface.ifa_addr) });
    }
    // SAFETY: nothing of the list is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

/// An address of IP; none of other families.
///
/// # Safety
/// `address` is null, or points to an address that is as large as its family is.
unsafe fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: the caller's promise. The system does not promise where it lies.
    let family = unsafe { (&raw const (*address).sa_family).read_unaligned() };
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: the caller's promise.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the caller's promise.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_its_address() {
        let found = addresses().expect("asked");
        assert!(found.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)), "{found:?}");
    }
}
