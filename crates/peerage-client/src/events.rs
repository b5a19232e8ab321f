//! Reads server-sent events.

use crate::{error::Error, local::Event};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// The largest event, in bytes, that a client reads; the largest that a node sends lists some dozen locations. It
/// bounds what a broken server can make the client keep.
const MAX_EVENT_BYTES: usize = 256 * 1024;

/// What happens in a node, as it happens.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    decoder: Decoder,
}

impl Events {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, decoder: Decoder::default() }
    }

    /// Waits for the next event; `None` when the node has ended the stream.
    ///
    /// May be dropped while it waits without losing an event.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            match self.decoder.next_block() {
                Ok(Some(data)) => return Some(serde_json::from_str(&data).map_err(Error::Malformed)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.decoder.buffer.extend_from_slice(&data);
                    }
                }
                Err(error) => return Some(Err(Error::Http(error))),
            }
        }
    }
}

/// Cuts a byte stream into events: blocks of lines, ended by an empty line. Of the fields only `data` matters here.
#[derive(Debug, Default)]
struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes the next complete block that has data.
    fn next_block(&mut self) -> Result<Option<String>, Error> {
        loop {
            let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") else {
                if self.buffer.len() > MAX_EVENT_BYTES {
                    self.buffer.clear();
                    return Err(Error::TooLarge { limit_bytes: MAX_EVENT_BYTES });
                }
                return Ok(None);
            };
            let block = self.buffer.split_to(end + 2);
            let text = String::from_utf8_lossy(&block);
            let data: Vec<&str> =
                text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
            if !data.is_empty() {
                return Ok(Some(data.join("\n")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(decoder: &mut Decoder) -> Vec<String> {
        std::iter::from_fn(|| decoder.next_block().unwrap()).collect()
    }

    #[test]
    fn events_are_found_wherever_the_stream_is_cut() {
        let stream =
            b": keep-alive\n\nevent: x\ndata: {\"a\":1}\n\ndata: one\ndata: two\n\ndata: unfinished\n";
        for cut in 0..stream.len() {
            let mut decoder = Decoder::default();
            decoder.buffer.extend_from_slice(&stream[..cut]);
            let mut found = blocks(&mut decoder);
            decoder.buffer.extend_from_slice(&stream[cut..]);
            found.extend(blocks(&mut decoder));
            assert_eq!(found, ["{\"a\":1}", "one\ntwo"], "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused_and_forgotten() {
        let mut decoder = Decoder::default();
        decoder.buffer.extend_from_slice(&vec![b'x'; MAX_EVENT_BYTES + 1]);
        assert!(matches!(decoder.next_block(), Err(Error::TooLarge { .. })));
        assert!(decoder.buffer.is_empty());
    }
}
