//! Connections that stay: server-sent events, and a WebSocket that echoes (RFC 6455).

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::call::{Call, Reply, bare, problem, set, with_body};
use crate::server::Spawner;
use crate::{body, clock};

/// `/events?count=&every=`: one event at once and then one every second, without end if no count is given.
pub(super) fn events(call: &Call) -> Reply {
    let every = Duration::from_millis(call.query.number("every").unwrap_or(1_000));
    let count = call.query.number("count").unwrap_or(u64::MAX);
    // A client that comes back says what it has seen, and the numbers go on from there.
    let first = call
        .header("last-event-id")
        .and_then(|id| id.parse::<u64>().ok())
        .map_or(1, |id| id.saturating_add(1));
    let events = stream::unfold(0u64, move |sent| async move {
        if sent >= count {
            return None;
        }
        if sent > 0 {
            tokio::time::sleep(every).await;
        }
        let (n, at) = (first.saturating_add(sent), clock::iso(SystemTime::now()));
        Some((
            Bytes::from(format!(
                "id: {n}\nevent: tick\ndata: {{\"n\":{n},\"at\":\"{at}\"}}\n\n"
            )),
            sent + 1,
        ))
    });
    let mut reply = with_body(StatusCode::OK, body::from_stream(events));
    set(&mut reply, CONTENT_TYPE, "text/event-stream");
    set(&mut reply, CACHE_CONTROL, "no-cache, no-transform");
    set(
        &mut reply,
        HeaderName::from_static("x-accel-buffering"),
        "no",
    );
    reply
}

/// `/ws`: 101 and an echo of every message; 426 for what is no WebSocket handshake.
pub(super) fn websocket(mut call: Call, spawner: &Spawner) -> Reply {
    let wants = call
        .header("upgrade")
        .is_some_and(|u| u.eq_ignore_ascii_case("websocket"));
    let version = call.header("sec-websocket-version") == Some("13");
    let key = call
        .header("sec-websocket-key")
        .filter(|k| STANDARD.decode(k).is_ok_and(|raw| raw.len() == 16))
        .map(accept_key);
    let (true, true, Some(accept)) = (wants, version, key) else {
        let mut reply = problem(
            StatusCode::UPGRADE_REQUIRED,
            "upgrade_required",
            "this is a WebSocket (version 13)",
        );
        set(&mut reply, UPGRADE, "websocket");
        set(
            &mut reply,
            HeaderName::from_static("sec-websocket-version"),
            "13",
        );
        return reply;
    };
    let upgrade = hyper::upgrade::on(&mut call.request);
    let task = Box::pin(async move {
        if let Ok(upgraded) = upgrade.await {
            // The client leaving in mid-frame is its own affair.
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    // Fails only when the service is stopping; the connection is then dropped with it.
    let _ = spawner.send(task);
    let mut reply = bare(StatusCode::SWITCHING_PROTOCOLS);
    set(&mut reply, CONNECTION, "Upgrade");
    set(&mut reply, UPGRADE, "websocket");
    set(
        &mut reply,
        HeaderName::from_static("sec-websocket-accept"),
        &accept,
    );
    reply
}

/// RFC 6455 section 4.2.2: the key, a fixed text, SHA-1, base64.
fn accept_key(key: &str) -> String {
    let mut sha = sha1_smol::Sha1::new();
    sha.update(key.as_bytes());
    sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha.digest().bytes())
}

const CONTINUATION: u8 = 0x0;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const MAX_PAYLOAD: usize = 1024 * 1024;

async fn echo(mut io: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut input = BytesMut::with_capacity(4096);
    loop {
        match take_frame(&mut input) {
            Parsed::Frame(frame) => {
                let mut out = BytesMut::new();
                match frame.opcode {
                    PING => put_frame(&mut out, true, PONG, &frame.payload),
                    PONG => continue,
                    opcode => put_frame(&mut out, frame.fin, opcode, &frame.payload),
                }
                io.write_all(&out).await?;
                if frame.opcode == CLOSE {
                    return io.shutdown().await;
                }
            }
            Parsed::More => {
                if io.read_buf(&mut input).await? == 0 {
                    return Ok(());
                }
            }
            Parsed::Refuse(code) => {
                let mut out = BytesMut::new();
                put_frame(&mut out, true, CLOSE, &code.to_be_bytes());
                io.write_all(&out).await?;
                return io.shutdown().await;
            }
        }
    }
}

#[derive(Debug)]
struct Frame {
    fin: bool,
    opcode: u8,
    payload: Vec<u8>,
}

#[derive(Debug)]
enum Parsed {
    Frame(Frame),
    /// The frame is not whole yet.
    More,
    /// Close with this code: 1002 protocol error, 1009 too big (RFC 6455 section 7.4.1).
    Refuse(u16),
}

/// Takes one client frame off the front of the buffer, unmasked.
fn take_frame(input: &mut BytesMut) -> Parsed {
    let [first, second, ..] = input[..] else {
        return Parsed::More;
    };
    let (fin, reserved, opcode, masked) = (
        first & 0x80 != 0,
        first & 0x70,
        first & 0x0f,
        second & 0x80 != 0,
    );
    let control = opcode >= CLOSE;
    let known = matches!(opcode, CONTINUATION | 0x1 | 0x2 | CLOSE | PING | PONG);
    let short = usize::from(second & 0x7f);
    // No extension was agreed on, every client frame is masked, control frames are short and whole.
    if reserved != 0 || !known || !masked || (control && (!fin || short > 125)) {
        return Parsed::Refuse(1002);
    }
    let mut rest = &input[2..];
    let length = match short {
        126 => match rest.try_get_u16() {
            Ok(n) => u64::from(n),
            Err(_) => return Parsed::More,
        },
        127 => match rest.try_get_u64() {
            Ok(n) => n,
            Err(_) => return Parsed::More,
        },
        n => n as u64,
    };
    let length = match usize::try_from(length) {
        Ok(n) if n <= MAX_PAYLOAD => n,
        _ => return Parsed::Refuse(1009),
    };
    if rest.len() < 4 + length {
        return Parsed::More;
    }
    let mask = [rest[0], rest[1], rest[2], rest[3]];
    let payload = rest[4..4 + length]
        .iter()
        .zip(mask.iter().cycle())
        .map(|(b, m)| b ^ m)
        .collect();
    let used = input.len() - rest.len() + 4 + length;
    input.advance(used);
    Parsed::Frame(Frame {
        fin,
        opcode,
        payload,
    })
}

/// Writes a server frame, which is not masked.
fn put_frame(out: &mut BytesMut, fin: bool, opcode: u8, payload: &[u8]) {
    out.put_u8(if fin { 0x80 | opcode } else { opcode });
    match payload.len() {
        n @ 0..=125 => out.put_u8(n as u8),
        n @ 126..=0xffff => {
            out.put_u8(126);
            out.put_u16(n as u16);
        }
        n => {
            out.put_u8(127);
            out.put_u64(n as u64);
        }
    }
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    fn masked(opcode: u8, payload: &[u8], mask: [u8; 4]) -> BytesMut {
        let mut plain = BytesMut::new();
        put_frame(&mut plain, true, opcode, payload);
        let head = plain.len() - payload.len();
        let mut frame = BytesMut::from(&plain[..head]);
        frame[1] |= 0x80;
        frame.put_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        frame
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut input = BytesMut::from(&bytes[..]);
            let before = input.len();
            match take_frame(&mut input) {
                Parsed::Frame(frame) => prop_assert!(input.len() + frame.payload.len() + 6 <= before),
                _ => prop_assert_eq!(input.len(), before),
            }
        }

        #[test]
        fn a_frame_comes_back_whole_however_it_is_cut(payload in proptest::collection::vec(any::<u8>(), 0..70_000), mask: [u8; 4], at in 0usize..100) {
            let frame = masked(0x2, &payload, mask);
            let cut = frame.len() * at / 100;
            let mut input = BytesMut::from(&frame[..cut]);
            prop_assert!(matches!(take_frame(&mut input), Parsed::More));
            input.extend_from_slice(&frame[cut..]);
            match take_frame(&mut input) {
                Parsed::Frame(got) => prop_assert_eq!(got.payload, payload),
                other => prop_assert!(false, "{:?}", other),
            }
            prop_assert!(input.is_empty());
        }
    }
}
