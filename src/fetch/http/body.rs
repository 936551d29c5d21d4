//! An answer: its head, and its body read with limits and before a deadline.

use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{AsHeaderName, CONTENT_ENCODING, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use tokio::sync::OwnedSemaphorePermit;

use super::super::{BoxFuture, Chunks, Deadline, Error, ErrorKind, Result};
use super::failure;

/// Bytes that each second of a deadline costs: who sends less than so many on average while we
/// wait would keep a reader for hours and count as alive. A line that is shared by all requests that
/// one mount has under way is far above it.
const PACE_BYTES_PER_S: u64 = 1 << 10;

/// How much of an error's body is read: a registry's error document is far smaller.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// The head of an answer, and its body still to come.
pub struct Answer {
    what: String,
    url: Url,
    response: reqwest::Response,
    patience: Patience,
}

/// How long the next bytes may take. Only time spent waiting counts: a slow reader is no slow server.
struct Patience {
    stall: Duration,
    left: Duration,
    /// Bytes since it was full last; `None` before the first, which fills it.
    arrived_bytes: Option<u64>,
}

/// The body of an answer on its way, counted.
pub struct Stream {
    answer: Answer,
    wanted_bytes: u64,
    left_bytes: u64,
    _connection: OwnedSemaphorePermit,
}

impl Answer {
    pub(super) fn new(
        what: String,
        url: Url,
        response: reqwest::Response,
        deadline: Deadline,
    ) -> Self {
        let left = deadline.at().saturating_duration_since(Instant::now());
        let patience = Patience { stall: deadline.stall(), left, arrived_bytes: None };
        Answer { what, url, response, patience }
    }

    /// The status of the last hop.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Where the answer came from, after all redirects.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The first header of that name.
    pub fn header(&self, name: impl AsHeaderName) -> Option<&HeaderValue> {
        self.response.headers().get(name)
    }

    /// The first header of that name, when it is text.
    pub fn text_header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.header(name)?.to_str().ok()
    }

    /// All headers of that name that are text.
    pub fn text_headers(&self, name: impl AsHeaderName) -> Vec<String> {
        let values = self.response.headers().get_all(name);
        values.iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    }

    /// All challenges, one string per `WWW-Authenticate` header.
    pub fn challenges(&self) -> Vec<String> {
        self.text_headers(WWW_AUTHENTICATE)
    }

    /// The length that the head promises.
    pub fn content_bytes(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The bytes are not what was asked for, because somebody compressed them on the way.
    pub fn is_encoded(&self) -> bool {
        self.text_header(CONTENT_ENCODING).is_some_and(|e| !e.eq_ignore_ascii_case("identity"))
    }

    /// A [`ErrorKind::Protocol`] error about this answer.
    pub fn wrong(&self, reason: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Protocol, format!("{}: {reason}", self.what))
    }

    /// The whole body, at most `limit_bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] beyond the limit, or what ended the body.
    pub async fn read_all(mut self, limit_bytes: u64) -> Result<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.next_chunk().await? {
            if (whole.len() + chunk.len()) as u64 > limit_bytes {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{}: the body is longer than {limit_bytes} bytes", self.what),
                ));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// The error that this answer is, with the registry's own words and a hint.
    pub async fn into_error(mut self, hint: &str) -> Error {
        let retry_after = self
            .text_header(RETRY_AFTER)
            .and_then(|value| failure::retry_after(value, SystemTime::now()));
        let mut body = BytesMut::new();
        // What cannot be read of an error's text is not worth another error.
        while let Ok(Some(chunk)) = self.next_chunk().await {
            let room = (ERROR_BYTES_MAX as usize).saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if room <= chunk.len() {
                break;
            }
        }
        failure::status(&self.what, self.status(), retry_after, &body, hint)
    }

    /// The body as `wanted_bytes` bytes: fewer or more is an error, told when it happens. It keeps
    /// its connection until it is dropped.
    pub fn stream(self, wanted_bytes: u64, connection: OwnedSemaphorePermit) -> Stream {
        let left_bytes = wanted_bytes;
        Stream { answer: self, wanted_bytes, left_bytes, _connection: connection }
    }

    /// The next bytes of the body.
    async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let began = Instant::now();
            let chunk = tokio::time::timeout(self.patience.left, self.response.chunk()).await;
            match chunk {
                Err(_) => return Err(self.patience.lost(&self.what)),
                Ok(Err(error)) => return Err(failure::transport(&self.what, &error)),
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(chunk))) => {
                    self.patience.spend(began.elapsed(), chunk.len() as u64);
                    if !chunk.is_empty() {
                        return Ok(Some(chunk));
                    }
                }
            }
        }
    }
}

impl Patience {
    /// `bytes` came after a wait. Enough of them, and patience is full again.
    fn spend(&mut self, waited: Duration, bytes: u64) {
        self.left = self.left.saturating_sub(waited);
        let arrived = self.arrived_bytes.map(|before| before.saturating_add(bytes));
        let due = u128::from(PACE_BYTES_PER_S) * self.stall.as_millis() / 1000;
        if arrived.is_none_or(|arrived| u128::from(arrived) >= due) {
            self.left = self.stall;
        }
        self.arrived_bytes = Some(arrived.filter(|&a| u128::from(a) < due).unwrap_or(0));
    }

    fn lost(&self, what: &str) -> Error {
        match self.arrived_bytes {
            None | Some(0) => failure::deadline_passed(what, self.stall),
            Some(bytes) => failure::too_slow(what, bytes, self.stall),
        }
    }
}

impl Stream {
    async fn advance(&mut self) -> Result<Option<Bytes>> {
        let arrived = self.wanted_bytes - self.left_bytes;
        let wanted = self.wanted_bytes;
        match self.answer.next_chunk().await {
            Ok(Some(chunk)) => {
                let left = self.left_bytes.checked_sub(chunk.len() as u64).ok_or_else(|| {
                    self.answer.wrong(format!("the body is longer than the {wanted} bytes due"))
                })?;
                self.left_bytes = left;
                Ok(Some(chunk))
            }
            Ok(None) if self.left_bytes == 0 => Ok(None),
            Ok(None) => Err(Error::new(
                ErrorKind::Network,
                format!("{}: the body ended after {arrived} of {wanted} bytes", self.answer.what),
            )),
            Err(error) => Err(error.context(format!("after {arrived} of {wanted} bytes"))),
        }
    }
}

impl Chunks for Stream {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(self.advance())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_a_second_is_not_enough_and_a_slow_line_is() {
        let stall = Duration::from_secs(60);
        let full = || Patience { stall, left: stall, arrived_bytes: Some(0) };
        let second = Duration::from_secs(1);
        let mut drip = full();
        (0..60).for_each(|_| drip.spend(second, 1));
        assert_eq!(drip.left, Duration::ZERO);
        assert!(drip.lost("GET x").to_string().contains("60 bytes"), "{}", drip.lost("GET x"));
        let mut slow = full();
        (0..10_000).for_each(|_| slow.spend(second, 1100));
        assert!(slow.left > Duration::ZERO);
        // Nobody waited for what a slow reader took late.
        let mut late = full();
        (0..1000).for_each(|_| late.spend(Duration::ZERO, 1));
        assert_eq!(late.left, stall);
    }

    #[test]
    fn a_burst_buys_one_deadline_and_no_more() {
        let stall = Duration::from_secs(1);
        let mut patience = Patience { stall, left: stall, arrived_bytes: Some(0) };
        patience.spend(Duration::from_millis(900), 1 << 30);
        assert_eq!((patience.left, patience.arrived_bytes), (stall, Some(0)));
        // However late the first byte came, the second has as long.
        let left = Duration::from_millis(10);
        let mut patience = Patience { stall, left, arrived_bytes: None };
        patience.spend(left, 1);
        assert_eq!(patience.left, stall);
    }
}
