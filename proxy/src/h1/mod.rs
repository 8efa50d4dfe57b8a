//! HTTP/1.1 messages (RFC 9112): reading and writing heads and framing bodies. Nothing here does I/O.
//!
//! One strict parser stands before everything else: what two implementations could read in two ways is refused, so that no upstream
//! ever sees a message whose end it could place elsewhere than we did (request smuggling).

mod body;
mod fields;
mod head;
mod peek;
mod response;
mod scan;
mod write;

pub use body::{BodyDecoder, BodyEncoder, BodyLength, Decoded, EncodeError, FramingError, ResponseLength, permitted};
pub use head::{HeadError, Limits, Parsed, RequestHead, parse_request};
pub use peek::{Line, Peeked, PeekedAnswer, peek, peek_answer, peek_lines};
pub use response::{ResponseHead, parse_response};
pub use fields::{field_name, field_value};
pub use scan::HeadScan;
#[cfg(test)]
pub(crate) use write::is_hop_by_hop;
pub use write::{Connection, last_chunk, line, status_line, strip_hop_by_hop, write_interim, write_request_head, write_response_head};
