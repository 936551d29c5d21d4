//! An answer: its head, and its body read with limits and before a deadline.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AsHeaderName, CONTENT_ENCODING, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};

use super::super::{BoxFuture, Chunks, Deadline, Error, ErrorKind, Result};
use super::failure;

/// How much of an error's body is read: a registry's error document is far smaller.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// The head of an answer, and its body still to come.
pub struct Answer {
    what: String,
    url: Url,
    response: reqwest::Response,
    deadline: Deadline,
}

/// The body of an answer on its way, counted.
pub struct Stream {
    answer: Answer,
    wanted_bytes: u64,
    left_bytes: u64,
}

impl Answer {
    pub(super) fn new(
        what: String,
        url: Url,
        response: reqwest::Response,
        deadline: Deadline,
    ) -> Self {
        Answer { what, url, response, deadline }
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

    /// All challenges, one string per `WWW-Authenticate` header.
    pub fn challenges(&self) -> Vec<String> {
        let values = self.response.headers().get_all(WWW_AUTHENTICATE);
        values.iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
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

    /// The body as `wanted_bytes` bytes: fewer or more is an error, told when it happens.
    pub fn stream(self, wanted_bytes: u64) -> Stream {
        Stream { answer: self, wanted_bytes, left_bytes: wanted_bytes }
    }

    /// The next bytes of the body. Each arrival renews the deadline.
    async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let chunk = self.response.chunk();
            match tokio::time::timeout_at(self.deadline.at().into(), chunk).await {
                Err(_) => return Err(failure::deadline_passed(&self.what, self.deadline)),
                Ok(Err(error)) => return Err(failure::transport(&self.what, &error)),
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(chunk))) => {
                    self.deadline = self.deadline.renewed();
                    if !chunk.is_empty() {
                        return Ok(Some(chunk));
                    }
                }
            }
        }
    }
}

impl Stream {
    async fn advance(&mut self) -> Result<Option<Bytes>> {
        if self.left_bytes < self.wanted_bytes {
            // A slow reader is not a slow server: the wait starts when somebody waits.
            self.answer.deadline = self.answer.deadline.renewed();
        }
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
