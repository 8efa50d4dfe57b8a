//! The PROXY protocol, versions 1 and 2: a balancer in front says whose connection it passes on. Only what a trusted balancer says is read.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::{io::AsyncReadExt, net::TcpStream};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// A header of version 1 is at most this long.
const LONGEST_V1: usize = 107;
/// Fields beyond the addresses are skipped up to this length.
const LONGEST_V2: usize = 16 + 2048;

/// What the beginning of a connection says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// More bytes are needed.
    Partial,
    /// Not a header.
    Malformed,
    /// A header of so many bytes: client and the address it came to; `None` for the balancer's own connections.
    Whole(usize, Option<(SocketAddr, SocketAddr)>),
}

/// Reads a header from the beginning of a connection, without taking a byte of what follows.
///
/// Errors: the connection's, or `InvalidData`.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let mut buffer = vec![0; LONGEST_V2];
    let mut seen = 0;
    loop {
        let count = stream.peek(&mut buffer).await?;
        match parse(&buffer[..count]) {
            Header::Whole(length, addresses) => {
                stream.read_exact(&mut buffer[..length]).await?;
                return Ok(addresses);
            }
            // Peeking does not wait for more than was seen: whoever sends a header in pieces is asked again a little later.
            Header::Partial if count > seen => seen = count,
            Header::Partial if count > 0 => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            Header::Partial => return Err(io::ErrorKind::UnexpectedEof.into()),
            Header::Malformed => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Parses what was received so far.
pub fn parse(bytes: &[u8]) -> Header {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] == SIGNATURE[..known] {
        return version_2(bytes);
    }
    let known = bytes.len().min(6);
    if bytes[..known] != b"PROXY "[..known] {
        return Header::Malformed;
    }
    let window = &bytes[..bytes.len().min(LONGEST_V1)];
    match window.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => version_1(&bytes[6..end.max(6)]).map_or(Header::Malformed, |addresses| Header::Whole(end + 2, addresses)),
        None if bytes.len() < LONGEST_V1 => Header::Partial,
        None => Header::Malformed,
    }
}

fn version_1(line: &[u8]) -> Option<Option<(SocketAddr, SocketAddr)>> {
    let line = std::str::from_utf8(line).ok()?;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let parts: Vec<&str> = line.split(' ').collect();
    let [family, from, to, from_port, to_port] = parts[..] else { return None };
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        let ip: IpAddr = ip.parse().ok()?;
        let right = matches!((family, ip), ("TCP4", IpAddr::V4(_)) | ("TCP6", IpAddr::V6(_)));
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        (right && digits).then(|| port.parse().ok().map(|port| SocketAddr::new(ip, port)))?
    };
    Some(Some((address(from, from_port)?, address(to, to_port)?)))
}

fn version_2(bytes: &[u8]) -> Header {
    let Some(fixed) = bytes.get(..16) else { return Header::Partial };
    let (version, command, family) = (fixed[12] >> 4, fixed[12] & 15, fixed[13]);
    let length = 16 + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if version != 2 || command > 1 || length > LONGEST_V2 {
        return Header::Malformed;
    }
    let Some(rest) = bytes.get(16..length) else { return Header::Partial };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let addresses = match (command, family) {
        (0, _) => None,
        (_, 0x11) if rest.len() >= 12 => {
            let ip = |at: usize| IpAddr::from(Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]));
            Some((SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10))))
        }
        (_, 0x21) if rest.len() >= 36 => {
            let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&rest[at..at + 16]).map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from));
            Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34))))
        }
        // Families that Weir has no addresses for: the balancer's own counts.
        (_, 0x00) => None,
        _ => return Header::Malformed,
    };
    Header::Whole(length, addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(from: &str, to: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn version_1_names_both_ends() {
        let text = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parse(text), Header::Whole(45, pair("192.0.2.1:56324", "198.51.100.2:443")));
        assert_eq!(parse(&text[..44]), Header::Partial);
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Header::Whole(15, None));
        let v6 = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n";
        assert_eq!(parse(v6), Header::Whole(v6.len(), pair("[2001:db8::1]:1", "[2001:db8::2]:2")));
        for wrong in [&b"GET / HTTP/1.1\r\n"[..], b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", b"PROXY \r\n"] {
            assert_eq!(parse(wrong), Header::Malformed, "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn version_2_names_both_ends() {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 187]);
        assert_eq!(parse(&bytes), Header::Whole(28, pair("192.0.2.1:56324", "198.51.100.2:443")));
        assert!((1..28).all(|cut| parse(&bytes[..cut]) == Header::Partial));
        bytes[12] = 0x20;
        assert_eq!(parse(&bytes), Header::Whole(28, None));
        bytes[12] = 0x31;
        assert_eq!(parse(&bytes), Header::Malformed);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..200), v2 in any::<bool>()) {
            let bytes = if v2 { [&SIGNATURE[..], &bytes].concat() } else { [b"PROXY ", &bytes[..]].concat() };
            if let Header::Whole(length, _) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
