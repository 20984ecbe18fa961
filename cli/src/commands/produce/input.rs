//! Where messages come from. A line is a message, byte for byte, without its line feed; the last
//! one may lack it; an empty line is an empty message.

use std::path::Path;

use aquifer_model::limits::MESSAGE_BYTES_MAX;
use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};

use crate::exit::CliError;

const BUFFER_BYTES: usize = 256 * 1024;

/// A source of messages.
pub enum Input {
    /// From the command line.
    Arguments(std::vec::IntoIter<String>),
    /// From a file or standard input.
    Lines(Lines<BufReader<Box<dyn AsyncRead + Unpin + Send>>>),
}

impl Input {
    /// The arguments if there are any, otherwise the file, otherwise standard input.
    pub async fn open(messages: Vec<String>, file: Option<&Path>) -> Result<Input, CliError> {
        if !messages.is_empty() {
            return Ok(Input::Arguments(messages.into_iter()));
        }
        let reader: Box<dyn AsyncRead + Unpin + Send> = match file {
            None => Box::new(tokio::io::stdin()),
            Some(path) => Box::new(tokio::fs::File::open(path).await.map_err(|error| {
                CliError::failed(format!("cannot read {}: {error}", path.display()))
            })?),
        };
        let reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        Ok(Input::Lines(Lines::new(reader)))
    }

    /// The next message, `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CliError> {
        match self {
            Input::Arguments(messages) => Ok(messages.next().map(Bytes::from)),
            Input::Lines(lines) => lines.next().await,
        }
    }
}

/// Lines of a stream, none longer than a message may be.
pub struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(reader: R) -> Lines<R> {
        Lines { reader, number: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, CliError> {
        self.number += 1;
        let mut line = Vec::new();
        loop {
            let number = self.number;
            let available = self.reader.fill_buf().await.map_err(|error| {
                CliError::failed(format!("cannot read the input at line {number}: {error}"))
            })?;
            if available.is_empty() {
                return Ok((!line.is_empty()).then(|| Bytes::from(line)));
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            if line.len() + part.len() > MESSAGE_BYTES_MAX {
                return Err(CliError::failed(format!(
                    "line {number} is longer than a message may be, {MESSAGE_BYTES_MAX} bytes; \
                     the lines before are stored"
                )));
            }
            line.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(Bytes::from(line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8]) -> Vec<Bytes> {
        // A tiny buffer, so that lines span several reads.
        let mut lines = Lines::new(BufReader::with_capacity(3, text));
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.expect("the text is readable") {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn a_line_is_a_message_byte_for_byte() {
        assert_eq!(lines(b"").await, Vec::<Bytes>::new());
        assert_eq!(lines(b"one\ntwo\n").await, ["one", "two"]);
        assert_eq!(lines(b"one\n\nlast").await, ["one", "", "last"]);
        assert_eq!(lines(b"a\r\n\n").await, ["a\r", ""]);
        assert_eq!(lines(b"\xff\x00\n").await, [&b"\xff\x00"[..]]);
    }

    #[tokio::test]
    async fn a_line_beyond_the_bound_is_an_error_and_not_memory() {
        let long = vec![b'x'; MESSAGE_BYTES_MAX + 1];
        let mut lines = Lines::new(BufReader::new(&long[..]));
        let error = lines.next().await.unwrap_err();
        assert!(error.to_string().starts_with("line 1 is longer"));
        let fits = &long[..MESSAGE_BYTES_MAX];
        let mut lines = Lines::new(BufReader::new(fits));
        let line = lines.next().await.expect("it fits").expect("one line");
        assert_eq!(line.len(), MESSAGE_BYTES_MAX);
    }
}
