//! Trouble on the wire, told beforehand: which request, what goes wrong, how often.

use std::sync::Mutex;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::{Method, StatusCode, header};
use layoutfs::layout::Digest;

use super::answer::{Asked, Reply};

/// What goes wrong. Positions count from the start of the answer's body unless they say blob.
#[derive(Debug, Clone)]
pub enum Action {
    /// The connection ends without an answer.
    HangUp,
    /// No answer, ever; the connection stays.
    Stall,
    /// The head and so many body bytes come, then nothing; the connection stays.
    StallAt(usize),
    /// The connection ends after so many body bytes.
    CutBodyAt(usize),
    /// So many bytes, then a wait, until the body is complete.
    Drip { bytes: usize, every: Duration },
    /// Another status, with these headers (`retry-after`) and a short text.
    Status(u16, Vec<(&'static str, String)>),
    /// 200 and the whole blob, where 206 was asked for.
    IgnoreRange,
    /// The bytes asked for, but `Content-Range` says one byte further.
    WrongContentRange,
    /// 206 without `Content-Range`.
    MissingContentRange,
    /// So many bytes after the end, counted in `Content-Length`.
    BodyTooLong(usize),
    /// The byte at this position of the blob is another, when the answer holds it.
    WrongBytes { at: u64 },
    /// The answer to HEAD says this size.
    WrongHeadSize(u64),
    /// The answer names this media type.
    WrongContentType(&'static str),
    /// The answer has no `Content-Length`; its end is marked by chunked coding.
    Chunked,
    /// 307 to this address.
    RedirectTo(String),
    /// 307 to the address itself.
    RedirectLoop,
}

/// An action with the requests that it applies to: every one, until narrowed.
#[derive(Debug, Clone)]
pub struct Fault {
    action: Action,
    method: Option<&'static str>,
    path_contains: Option<String>,
    skip: u32,
    times: Option<u32>,
}

impl Fault {
    /// Acts on the next request, once.
    pub fn new(action: Action) -> Self {
        Fault { action, method: None, path_contains: None, skip: 0, times: Some(1) }
    }

    /// Only on requests with this in their path.
    pub fn path(mut self, contains: impl Into<String>) -> Self {
        self.path_contains = Some(contains.into());
        self
    }

    /// Only on requests for this blob, at the registry or behind a redirect.
    pub fn blob(self, digest: &Digest) -> Self {
        self.path(digest.to_string())
    }

    /// Only on `GET`, `HEAD` or another method.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Leaves the first `requests` that match alone.
    pub fn after(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// Acts so often, then vanishes.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Acts until the faults are cleared.
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.is_none_or(|m| m == method)
            && self.path_contains.as_deref().is_none_or(|p| path.contains(p))
    }
}

/// The script: what is still to go wrong.
#[derive(Default)]
pub struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    /// Adds to the end of the script.
    pub fn add(&self, fault: Fault) {
        self.0.lock().unwrap().push(fault);
    }

    /// How many have not vanished.
    pub fn left(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Ends the script.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// What happens to this request: the oldest fault that matches and has nothing left to skip.
    pub fn take(&self, method: &str, path: &str) -> Option<Action> {
        let mut faults = self.0.lock().unwrap();
        for at in 0..faults.len() {
            let fault = &mut faults[at];
            if !fault.matches(method, path) || fault.times == Some(0) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            let action = fault.action.clone();
            if let Some(times) = &mut fault.times {
                *times -= 1;
                if *times == 0 {
                    faults.remove(at);
                }
            }
            return Some(action);
        }
        None
    }
}

impl Action {
    /// An answer in place of the true one.
    pub fn reply(&self, asked: &Asked) -> Option<Reply> {
        let redirect = |to: &str| Reply::new(StatusCode::TEMPORARY_REDIRECT).with("location", to);
        match self {
            Action::Status(code, headers) => {
                let status = StatusCode::from_u16(*code).expect("a status code");
                let reply = Reply::error(status, "UNAVAILABLE", "told to fail");
                Some(headers.iter().fold(reply, |reply, (name, value)| reply.with(name, value)))
            }
            Action::RedirectTo(address) => Some(redirect(address)),
            Action::RedirectLoop => Some(redirect(&asked.path)),
            _ => None,
        }
    }

    /// Changes the true answer.
    pub fn alter(&self, asked: &Asked, reply: &mut Reply) {
        match *self {
            Action::StallAt(at) => reply.pace.stall_at = Some(at),
            Action::CutBodyAt(at) => reply.pace.cut_at = Some(at),
            Action::Drip { bytes, every } => reply.pace.drip = Some((bytes.max(1), every)),
            Action::Chunked => reply.pace.chunked = true,
            Action::MissingContentRange => drop(reply.headers.remove(header::CONTENT_RANGE)),
            Action::WrongContentRange => shift_content_range(reply),
            Action::BodyTooLong(by) => {
                let mut body = BytesMut::from(&reply.body[..]);
                body.resize(body.len() + by, b'+');
                reply.body = body.freeze();
            }
            Action::WrongBytes { at } => flip(reply, at),
            Action::WrongHeadSize(size) if asked.method == Method::HEAD => {
                reply.declared_bytes = Some(size);
            }
            Action::WrongContentType(media_type) => {
                let value = header::HeaderValue::from_static(media_type);
                reply.headers.insert(header::CONTENT_TYPE, value);
            }
            _ => {}
        }
    }
}

fn flip(reply: &mut Reply, at: u64) {
    let Some(at) = at.checked_sub(reply.start).filter(|&at| at < reply.body.len() as u64) else {
        return;
    };
    let mut body = reply.body.to_vec();
    body[at as usize] ^= 0xff;
    reply.body = Bytes::from(body);
}

fn shift_content_range(reply: &mut Reply) {
    let Some(range) = reply.headers.get(header::CONTENT_RANGE) else { return };
    let size = range.to_str().ok().and_then(|r| r.rsplit_once('/')).map_or("*", |(_, size)| size);
    let start = reply.start + 1;
    let last = reply.start + reply.body.len() as u64;
    let wrong = format!("bytes {start}-{last}/{size}");
    let value = header::HeaderValue::from_str(&wrong).expect("a header value");
    reply.headers.insert(header::CONTENT_RANGE, value);
}
