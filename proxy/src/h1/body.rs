//! Bodies: finding their end while reading (RFC 9112 sections 6 and 7) and marking it while writing.
//!
//! ```text
//! chunked:  Size ─► Extension ─► SizeLf ─► Data ─► DataCr ─► DataLf ─► Size …
//!             └──────────────────►┘  └─(size 0)─► Trailers ─► done
//! ```

use super::{
    fields,
    scan::{Found, HeadScan},
    write,
};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};

/// How the end of a request's body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
}

/// How the end of a response's body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseLength {
    /// There is none, whatever the head announces.
    None,
    /// After this many bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
}

impl From<BodyLength> for ResponseLength {
    fn from(length: BodyLength) -> ResponseLength {
        match length {
            BodyLength::None => ResponseLength::None,
            BodyLength::Length(n) => ResponseLength::Length(n),
            BodyLength::Chunked => ResponseLength::Chunked,
        }
    }
}

/// Hex digits of a chunk size.
const MAX_SIZE_DIGITS: u8 = 16;
/// Bytes of chunk extensions in a whole body. They mean nothing here, and endless ones would be work without a result.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Bytes of a trailer section.
const MAX_TRAILERS: usize = 8 * 1024;
/// Fields of a trailer section.
const MAX_TRAILER_FIELDS: usize = 64;

/// A piece of a body, or news about it.
#[derive(Debug)]
pub enum Decoded {
    /// Content, without framing; shares the buffer it was read into.
    Data(Bytes),
    /// The buffer holds nothing more of use.
    NeedMore,
    /// The body is complete; what remains in the buffer belongs to the next message.
    End {
        /// Trailer fields, without those that only make sense in a head. Only reported once.
        trailers: Option<HeaderMap>,
    },
}

/// Why a body can not be read on. The connection must be closed: nobody knows where the next message begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Not a hexadecimal number.
    #[error("invalid chunk size")]
    ChunkSize,
    /// Larger than any body.
    #[error("chunk size too large")]
    ChunkTooLarge,
    /// A control character in a chunk's line, or a line that does not end with CRLF.
    #[error("malformed chunk line")]
    ChunkLine,
    /// No CRLF behind a chunk.
    #[error("chunk longer than its size")]
    ChunkEnd,
    /// Too many bytes of chunk extensions.
    #[error("chunk extensions too long")]
    Extensions,
    /// Too many bytes or fields of trailers.
    #[error("trailers too long")]
    TrailersTooLong,
    /// A trailer field that is no field.
    #[error("malformed trailers: {0}")]
    Trailers(&'static str),
    /// The connection ended before the body did.
    #[error("body incomplete")]
    Incomplete,
}

/// Takes a body's framing away, piece by piece.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    extensions: usize,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Close,
    Size { value: u64, digits: u8 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers(HeadScan),
    Done,
    Broken(FramingError),
}

const NEXT_CHUNK: State = State::Size { value: 0, digits: 0 };

impl BodyDecoder {
    /// For a request's body.
    pub fn request(length: BodyLength) -> BodyDecoder {
        BodyDecoder::response(length.into())
    }

    /// For a response's body.
    pub fn response(length: ResponseLength) -> BodyDecoder {
        let state = match length {
            ResponseLength::None | ResponseLength::Length(0) => State::Done,
            ResponseLength::Length(left) => State::Length(left),
            ResponseLength::Chunked => NEXT_CHUNK,
            ResponseLength::Close => State::Close,
        };
        BodyDecoder { state, extensions: 0 }
    }

    /// The next piece out of `buf`. Takes from the buffer only what belongs to the body.
    ///
    /// # Errors
    /// Broken framing, now and at every further call.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, FramingError> {
        let result = self.step(buf);
        if let Err(error) = result {
            self.state = State::Broken(error);
        }
        result
    }

    /// The connection ended.
    ///
    /// # Errors
    /// `Incomplete`, unless the body was complete or delimited by just this.
    pub fn eof(&mut self) -> Result<(), FramingError> {
        match self.state {
            State::Done | State::Close => {
                self.state = State::Done;
                Ok(())
            }
            State::Broken(error) => Err(error),
            _ => {
                self.state = State::Broken(FramingError::Incomplete);
                Err(FramingError::Incomplete)
            }
        }
    }

    fn step(&mut self, buf: &mut BytesMut) -> Result<Decoded, FramingError> {
        loop {
            match &mut self.state {
                State::Done => return Ok(Decoded::End { trailers: None }),
                State::Broken(error) => return Err(*error),
                _ if buf.is_empty() => return Ok(Decoded::NeedMore),
                State::Close => return Ok(Decoded::Data(buf.split().freeze())),
                State::Length(left) => {
                    let data = take(buf, left);
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Data { left } => {
                    let data = take(buf, left);
                    if *left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::Trailers(scan) => match scan.find(buf, MAX_TRAILERS, MAX_TRAILER_FIELDS, true) {
                    Found::Partial => return Ok(Decoded::NeedMore),
                    Found::Head { end, .. } => {
                        let section = buf.split_to(end).freeze();
                        self.state = State::Done;
                        return Ok(Decoded::End { trailers: trailers(&section)? });
                    }
                    Found::BareLf | Found::Blanks => return Err(FramingError::Trailers("line feed without carriage return")),
                    Found::TooManyLines | Found::TooLong { .. } => return Err(FramingError::TrailersTooLong),
                },
                _ => {
                    let used = self.chunk_line(buf)?;
                    buf.advance(used);
                }
            }
        }
    }

    /// Walks over the bytes between two chunks' data; returns how many there were.
    fn chunk_line(&mut self, buf: &[u8]) -> Result<usize, FramingError> {
        for (at, &b) in buf.iter().enumerate() {
            self.state = match (&self.state, b) {
                (&State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { size: value },
                (&State::Size { value, digits: 1.. }, b';') => State::Extension { size: value },
                (&State::Size { value, digits }, _) => {
                    let digit = (b as char).to_digit(16).ok_or(FramingError::ChunkSize)?;
                    if digits >= MAX_SIZE_DIGITS || value >> 59 != 0 {
                        return Err(FramingError::ChunkTooLarge);
                    }
                    State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
                }
                (&State::Extension { size }, b'\r') => State::SizeLf { size },
                (&State::Extension { size }, b'\t' | b' '..=b'~') => {
                    self.extensions += 1;
                    if self.extensions > MAX_EXTENSIONS {
                        return Err(FramingError::Extensions);
                    }
                    State::Extension { size }
                }
                (&State::SizeLf { size: 0 }, b'\n') => State::Trailers(HeadScan::default()),
                (&State::SizeLf { size }, b'\n') => State::Data { left: size },
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => NEXT_CHUNK,
                (State::DataCr | State::DataLf, _) => return Err(FramingError::ChunkEnd),
                _ => return Err(FramingError::ChunkLine),
            };
            if matches!(self.state, State::Data { .. } | State::Trailers(_)) {
                return Ok(at + 1);
            }
        }
        Ok(buf.len())
    }
}

fn take(buf: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
    *left -= count as u64;
    buf.split_to(count).freeze()
}

/// Fields that control framing, routing, caching or access: RFC 9110 section 6.5.1 forbids them here, and whoever merged them into the
/// head would be fooled.
const NO_TRAILER: [HeaderName; 25] = [
    header::AUTHORIZATION,
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::EXPECT,
    header::EXPIRES,
    header::HOST,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::RETRY_AFTER,
    header::SET_COOKIE,
    header::VARY,
    header::WARNING,
    header::WWW_AUTHENTICATE,
];

fn trailers(section: &Bytes) -> Result<Option<HeaderMap>, FramingError> {
    let mut map = HeaderMap::new();
    fields::parse_fields(section, &mut map).map_err(|e| FramingError::Trailers(e.reason))?;
    Ok(permitted(map))
}

/// What may follow a body.
pub fn permitted(mut map: HeaderMap) -> Option<HeaderMap> {
    write::strip_hop_by_hop(&mut map);
    for name in &NO_TRAILER {
        map.remove(name);
    }
    (!map.is_empty()).then_some(map)
}

/// Why a body can not be written as announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More bytes than announced; none of them was written.
    #[error("body longer than announced")]
    TooLong,
    /// Fewer bytes than announced.
    #[error("body shorter than announced")]
    TooShort,
    /// `finish` was called before.
    #[error("body already finished")]
    Finished,
}

/// Puts a body's framing around its pieces, and keeps the promise that the head made.
#[derive(Debug)]
pub struct BodyEncoder {
    framing: ResponseLength,
    finished: bool,
}

impl BodyEncoder {
    /// For a request's body.
    pub fn new(length: BodyLength) -> BodyEncoder {
        BodyEncoder::response(length.into())
    }

    /// For a response's body.
    pub fn response(length: ResponseLength) -> BodyEncoder {
        BodyEncoder { framing: length, finished: false }
    }

    /// Appends a piece to `out`. An empty piece changes nothing (as a chunk it would end the body).
    ///
    /// # Errors
    /// The piece exceeds the announced length, or the body is finished.
    pub fn encode(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if data.is_empty() {
            return Ok(());
        }
        if self.finished {
            return Err(EncodeError::Finished);
        }
        match &mut self.framing {
            ResponseLength::None => return Err(EncodeError::TooLong),
            ResponseLength::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(EncodeError::TooLong)?;
                out.extend_from_slice(data);
            }
            ResponseLength::Chunked => {
                out.reserve(data.len() + 20);
                write::hex(out, data.len());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
            ResponseLength::Close => out.extend_from_slice(data),
        }
        Ok(())
    }

    /// Appends what ends the body.
    ///
    /// # Errors
    /// Fewer bytes came than were announced, or the body is finished already.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.finish_with(None, out)
    }

    /// The same with trailers, which only a chunked body can have; with another framing they are dropped.
    ///
    /// # Errors
    /// As `finish`.
    pub fn finish_with(&mut self, trailers: Option<&HeaderMap>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if self.finished {
            return Err(EncodeError::Finished);
        }
        match self.framing {
            ResponseLength::Length(left) if left > 0 => return Err(EncodeError::TooShort),
            ResponseLength::Chunked => write::last_chunk(out, trailers),
            _ => {}
        }
        self.finished = true;
        Ok(())
    }
}
