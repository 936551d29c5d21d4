//! gzip members (RFC 1952) around raw deflate, in pieces of any size.

use super::inflate::{At, Inflate};
use super::{Boundary, Step};
use crate::layout::error::{Error, Result};

const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
/// "Reserved FLG bits must be zero" (RFC 1952 2.3.1.2).
const FLAGS_RESERVED: u8 = 0b1110_0000;

/// CRC32 and length of the content: the digests say more.
const TRAILER_BYTES: usize = 8;

pub(super) struct GzipStream {
    state: State,
    inflate: Inflate,
    /// Where the current member begins in the blob.
    begun: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Behind a member, or at the start.
    Between,
    Header(Header),
    Body,
    Trailer {
        left: usize,
    },
    /// Zeros to the end of the blob.
    Padding,
}

/// How far a member's header was read. It is passed over, not kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    /// Optional fields still to come.
    flags: u8,
    field: Field,
}

#[derive(Debug, Clone, Copy)]
enum Field {
    /// The ten bytes that each header has.
    Fixed {
        at: usize,
    },
    ExtraLength {
        low: Option<u8>,
    },
    Extra {
        left: u16,
    },
    /// Name or comment, up to a NUL.
    Text,
    Crc {
        left: u8,
    },
}

impl GzipStream {
    pub(super) fn new() -> Result<Self> {
        let inflate = Inflate::new().map_err(|reason| Error::codec(0, reason))?;
        Ok(GzipStream { state: State::Between, inflate, begun: 0 })
    }

    /// A stream that goes on between two blocks of a member: see [`Inflate::resume`].
    pub(super) fn resume(bits: u8, byte: u8, window: &[u8]) -> Result<Self> {
        let mut stream = GzipStream::new()?;
        let resumed = stream.inflate.resume(bits, byte, window);
        resumed.map_err(|reason| Error::codec(0, reason))?;
        stream.state = State::Body;
        Ok(stream)
    }

    /// What blocks to come may refer to.
    pub(super) fn window(&mut self) -> Vec<u8> {
        self.inflate.window()
    }

    /// Where the member begins that is not complete.
    pub(super) fn unfinished(&self) -> Option<u64> {
        match self.state {
            State::Between | State::Padding => None,
            State::Header(_) | State::Body | State::Trailer { .. } => Some(self.begun),
        }
    }

    /// Decodes some of `input`, which begins at `at` in the blob; if `to_boundary`, no further than
    /// to the next place between two blocks of a member.
    pub(super) fn step(
        &mut self,
        at: u64,
        input: &[u8],
        output: &mut [u8],
        to_boundary: bool,
    ) -> Result<Step> {
        match &mut self.state {
            State::Body => self.inflate(at, input, output, to_boundary),
            State::Between => match input.first() {
                None => Ok(Step::default()),
                Some(0) => {
                    self.state = State::Padding;
                    Ok(Step { consumed: 1, ..Step::default() })
                }
                Some(_) => {
                    self.begun = at;
                    self.state = State::Header(Header::new());
                    Ok(Step { boundary: Some(Boundary::Start), ..Step::default() })
                }
            },
            State::Header(header) => {
                for (consumed, &byte) in input.iter().enumerate() {
                    let position = at + consumed as u64;
                    let complete = header.add(byte).map_err(|e| Error::codec(position, e))?;
                    if complete {
                        self.inflate.reset();
                        self.state = State::Body;
                        return Ok(Step { consumed: consumed + 1, ..Step::default() });
                    }
                }
                Ok(Step { consumed: input.len(), ..Step::default() })
            }
            State::Trailer { left } => {
                let consumed = input.len().min(*left);
                *left -= consumed;
                if *left == 0 {
                    self.state = State::Between;
                }
                Ok(Step { consumed, ..Step::default() })
            }
            State::Padding => match input.iter().position(|b| *b != 0) {
                None => Ok(Step { consumed: input.len(), ..Step::default() }),
                Some(garbage) => Err(Error::codec(
                    at + garbage as u64,
                    "garbage behind the last gzip member: expected zeros or nothing",
                )),
            },
        }
    }

    fn inflate(
        &mut self,
        at: u64,
        input: &[u8],
        output: &mut [u8],
        to_boundary: bool,
    ) -> Result<Step> {
        let ran = self.inflate.run(input, output, to_boundary);
        let ran = ran.map_err(|e| Error::codec(at, format!("invalid gzip content: {e}")))?;
        let boundary = match ran.at {
            At::Within => None,
            At::Boundary { bits } => Some(Boundary::Within { bits }),
            At::End => {
                self.state = State::Trailer { left: TRAILER_BYTES };
                None
            }
        };
        Ok(Step { consumed: ran.consumed, produced: ran.produced, boundary })
    }
}

impl Header {
    /// A header none of whose bytes has come.
    pub(crate) fn new() -> Self {
        Header { flags: 0, field: Field::Fixed { at: 0 } }
    }

    /// Reads one byte. `true`: the header is complete.
    pub(crate) fn add(&mut self, byte: u8) -> std::result::Result<bool, String> {
        match &mut self.field {
            Field::Fixed { at } => {
                match *at {
                    0 if byte != 0x1f => return Err(not_gzip()),
                    1 if byte != 0x8b => return Err(not_gzip()),
                    2 if byte != 8 => {
                        return Err(format!("gzip method {byte}: expected 8 (deflate)"));
                    }
                    3 if byte & FLAGS_RESERVED != 0 => {
                        return Err(format!("reserved gzip flags {byte:#04x}"));
                    }
                    3 => self.flags = byte,
                    _ => {}
                }
                *at += 1;
                if *at < 10 { Ok(false) } else { Ok(self.next_field()) }
            }
            Field::ExtraLength { low } => match *low {
                None => {
                    *low = Some(byte);
                    Ok(false)
                }
                Some(low) => match u16::from_le_bytes([low, byte]) {
                    0 => Ok(self.next_field()),
                    left => {
                        self.field = Field::Extra { left };
                        Ok(false)
                    }
                },
            },
            Field::Extra { left } => {
                *left -= 1;
                if *left > 0 { Ok(false) } else { Ok(self.next_field()) }
            }
            Field::Text => {
                if byte != 0 {
                    Ok(false)
                } else {
                    Ok(self.next_field())
                }
            }
            Field::Crc { left } => {
                *left -= 1;
                if *left > 0 { Ok(false) } else { Ok(self.next_field()) }
            }
        }
    }

    /// Goes on to the next optional field in the order of RFC 1952. `true`: there is none.
    fn next_field(&mut self) -> bool {
        let order = [FLAG_EXTRA, FLAG_NAME, FLAG_COMMENT, FLAG_HEADER_CRC];
        let Some(flag) = order.into_iter().find(|flag| self.flags & flag != 0) else {
            return true;
        };
        self.flags &= !flag;
        self.field = match flag {
            FLAG_EXTRA => Field::ExtraLength { low: None },
            FLAG_HEADER_CRC => Field::Crc { left: 2 },
            _ => Field::Text,
        };
        false
    }
}

fn not_gzip() -> String {
    "not a gzip member: expected 1f 8b, or zeros, or the end of the blob".into()
}
