//! The frame that says where a guest has moved to: its hardware address, broadcast as the source of a RARP request, so that every
//! switch on the way learns the port behind which it is now. As QEMU does it for its own cards.

/// The shortest Ethernet frame, without checksum.
const LEN: usize = 60;

/// The frame.
pub(super) fn rarp(mac: [u8; 6]) -> [u8; LEN] {
    /// RARP; hardware and protocol: Ethernet and IPv4; their lengths; "request reverse".
    const ASKED: [u8; 10] = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    let parts: [&[u8]; 6] = [&[0xff; 6], &mac, &ASKED, &mac, &[0; 4], &mac];
    let mut frame = [0; LEN];
    frame.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
    frame
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_request_reverse_of_ones_own_address_is_broadcast() {
        let frame = super::rarp([0x52, 0x54, 0, 1, 2, 3]);
        let head = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2, 3, 0x80, 0x35];
        assert_eq!(frame[..14], head);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&head[6..12], &head[6..12]));
        assert_eq!((&frame[28..32], &frame[38..]), (&[0; 4][..], &[0; 22][..]));
    }
}
