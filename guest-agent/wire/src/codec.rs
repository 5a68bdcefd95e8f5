//! Little-endian reading and writing of one message, with every length checked.

use std::borrow::Cow;

use thiserror::Error;

/// Why a message could not be decoded. The error's text goes back to the peer that sent the message.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message ends in the middle of a field.
    #[error("message of {len} bytes ends inside `{field}`, which needs {need} more bytes")]
    Short {
        /// The field that did not fit.
        field: &'static str,
        /// How many bytes are missing from the field.
        need: usize,
        /// The length of the message.
        len: usize,
    },
    /// Bytes are left over after the last field.
    #[error("{extra} bytes follow the end of the message")]
    Trailing {
        /// How many bytes are left over.
        extra: usize,
    },
    /// A field holds a value that is not allowed.
    #[error("`{field}` is {value}; allowed: {allowed}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        allowed: Cow<'static, str>,
    },
    /// A text field is not UTF-8.
    #[error("`{field}` is not UTF-8 text")]
    Text {
        /// The field.
        field: &'static str,
    },
    /// The peer speaks another version of the protocol.
    #[error("peer speaks version {theirs} of the {protocol} protocol, this side speaks {ours}")]
    Version {
        /// Which protocol.
        protocol: &'static str,
        /// The version in the message.
        theirs: u16,
        /// The version spoken here.
        ours: u16,
    },
}

/// Reads the fields of one message in order.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    /// A reader of the whole of `message`.
    #[must_use]
    pub const fn new(message: &'a [u8]) -> Self {
        Self {
            rest: message,
            len: message.len(),
        }
    }

    /// The next `need` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`] when fewer are left.
    pub fn bytes(&mut self, field: &'static str, need: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(need).ok_or(DecodeError::Short {
            field,
            need: need.saturating_sub(self.rest.len()),
            len: self.len,
        })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(field, N)?);
        Ok(array)
    }

    /// The next `u16`.
    ///
    /// # Errors
    /// [`DecodeError::Short`] at the end of the message.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// The next `u32`.
    ///
    /// # Errors
    /// [`DecodeError::Short`] at the end of the message.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// The next `u64`.
    ///
    /// # Errors
    /// [`DecodeError::Short`] at the end of the message.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// The next text: a `u16` length and that many bytes of UTF-8, at most `max` of them.
    ///
    /// # Errors
    /// [`DecodeError`] when the text is cut off, too long or not UTF-8.
    pub fn text(&mut self, field: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        let len = usize::from(self.u16(field)?);
        // Before the bytes are taken, so that no peer decides how much is copied.
        if len > max {
            return Err(DecodeError::Value {
                field,
                value: len as u64,
                allowed: format!("at most {max} bytes").into(),
            });
        }
        std::str::from_utf8(self.bytes(field, len)?).map_err(|_| DecodeError::Text { field })
    }

    /// Checks that the message ends here.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] when the message does not end here.
    pub const fn end(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            // Bytes that nobody reads show that both sides disagree about the layout.
            extra => Err(DecodeError::Trailing { extra }),
        }
    }
}

/// Writes the fields of one message in order.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty message.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends a `u16`.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a `u32`.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a `u64`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a text with its length; a text longer than 65 535 bytes is cut.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let mut len = text.len().min(usize::from(u16::MAX));
        // Half a character would be no UTF-8, and the peer would refuse the whole message.
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let short = &text.as_bytes()[..len];

        self.u16(short.len() as u16).bytes(short)
    }

    /// The finished message.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}
