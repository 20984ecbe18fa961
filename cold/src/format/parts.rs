//! Header and trailer.

use aquifer_model::checksum::{crc32c, crc32c_append};
use aquifer_model::id::{AttemptId, LocationId};

use crate::format::{
    FOOTER_BYTES_MAX, Fields, FormatError, HEADER_BYTES, INDEX_BYTES_MAX, OBJECT_BYTES_MAX,
    TRAILER_BYTES, VERSION, count,
};

const HEADER_MAGIC: &[u8; 8] = b"AQOBJ\0\x01\n";
const TRAILER_MAGIC: &[u8; 8] = b"AQOEND\x01\n";
/// The bit of an object whose blocks are encrypted.
const ENCRYPTED: u32 = 1;

/// The first bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The attempt that wrote it.
    pub attempt: AttemptId,
    /// The location for which it was written.
    pub location: LocationId,
    /// When, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Header {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(HEADER_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(64_u16.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(self.attempt.0);
        out.extend(self.location.0);
        out.extend(self.created_ms.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(crc32c(&out).to_le_bytes());
        out.try_into()
            .expect("the fields of a header have 64 bytes")
    }

    /// Reads the first bytes of an object.
    ///
    /// # Errors
    /// When they are not a header that this build can read.
    pub fn parse(bytes: &[u8]) -> Result<Header, FormatError> {
        let mut fields = Fields::new("the header", bytes);
        if fields.take::<8>()? != *HEADER_MAGIC {
            return Err(FormatError::Magic("the header"));
        }
        let (version, length, flags) = (fields.u16()?, fields.u16()?, fields.u32()?);
        let (attempt, location) = (fields.take::<16>()?, fields.take::<16>()?);
        let (created_ms, _) = (fields.u64()?, fields.u32()?);
        check_crc(
            "the header",
            fields.u32()?,
            crc32c(&bytes[..HEADER_BYTES - 4]),
        )?;
        check_version(version)?;
        if usize::from(length) != HEADER_BYTES {
            return Err(FormatError::Newer(format!("a header of {length} bytes")));
        }
        if flags & ENCRYPTED != 0 {
            return Err(FormatError::Newer("it is encrypted".to_owned()));
        }
        Ok(Header {
            attempt: AttemptId(attempt),
            location: LocationId(location),
            created_ms,
        })
    }
}

/// The last bytes of an object: where index and footer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the index begins, behind the last block.
    pub index_offset: u64,
    /// Its stored bytes.
    pub index_len: u32,
    /// Its raw bytes.
    pub index_raw: u32,
    /// The checksum of the stored ones.
    pub index_crc: u32,
    /// Bytes of the footer, behind the index.
    pub footer_len: u32,
    /// Their checksum.
    pub footer_crc: u32,
    /// The length of the object.
    pub object_len: u64,
    /// CRC-64/NVME of everything before the trailer.
    pub body_crc64: u64,
    /// The codec of the index, by its number.
    pub codec: u8,
}

impl Trailer {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self, attempt: AttemptId) -> [u8; TRAILER_BYTES] {
        let mut out = Vec::with_capacity(TRAILER_BYTES);
        out.extend(self.index_offset.to_le_bytes());
        for field in [
            self.index_len,
            self.index_raw,
            self.index_crc,
            self.footer_len,
            self.footer_crc,
        ] {
            out.extend(field.to_le_bytes());
        }
        out.extend(self.object_len.to_le_bytes());
        out.extend(self.body_crc64.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend([self.codec, 0]);
        out.extend(0_u32.to_le_bytes());
        let crc = crc32c_append(crc32c(&attempt.0), &out);
        out.extend(crc.to_le_bytes());
        out.extend(TRAILER_MAGIC);
        out.try_into()
            .expect("the fields of a trailer have 64 bytes")
    }

    /// Reads the last bytes of an object of a length. The attempt, which their checksum covers, is
    /// in the footer: see [`Trailer::check_attempt`].
    ///
    /// # Errors
    /// When they are not a trailer that this build can read, or it does not fit the length.
    pub fn parse(bytes: &[u8], object_len: u64) -> Result<Trailer, FormatError> {
        let at = bytes.len().checked_sub(TRAILER_BYTES);
        let last = at.and_then(|at| bytes.get(at..)).unwrap_or(bytes);
        let mut fields = Fields::new("the trailer", last);
        let trailer = Trailer {
            index_offset: fields.u64()?,
            index_len: fields.u32()?,
            index_raw: fields.u32()?,
            index_crc: fields.u32()?,
            footer_len: fields.u32()?,
            footer_crc: fields.u32()?,
            object_len: fields.u64()?,
            body_crc64: fields.u64()?,
            codec: {
                check_version(fields.u16()?)?;
                let codec = fields.u8()?;
                match fields.u8()? {
                    0 => codec,
                    flags => return Err(FormatError::Newer(format!("trailer flags {flags}"))),
                }
            },
        };
        fields.take::<8>()?;
        if fields.take::<8>()? != *TRAILER_MAGIC {
            return Err(FormatError::Magic("the trailer"));
        }
        trailer.check_bounds(object_len)?;
        Ok(trailer)
    }

    fn check_bounds(&self, object_len: u64) -> Result<(), FormatError> {
        let tail = u64::from(self.index_len) + u64::from(self.footer_len) + TRAILER_BYTES as u64;
        let end = self.index_offset.checked_add(tail);
        let wrong = match () {
            () if self.object_len != object_len => "it is of an object of another length",
            () if object_len > OBJECT_BYTES_MAX => "the object is larger than any is",
            () if end != Some(object_len) => "its parts do not fill the object",
            () if self.index_offset < HEADER_BYTES as u64 => "its index begins in the header",
            () if count(self.index_raw) > INDEX_BYTES_MAX => "its index is larger than any is",
            () if self.index_len > self.index_raw => "its index grew when it was compressed",
            () if count(self.footer_len) > FOOTER_BYTES_MAX => "its footer is larger than any is",
            () => return Ok(()),
        };
        Err(FormatError::invalid(format!("the trailer: {wrong}")))
    }

    /// Checks the checksum of the trailer's bytes, which covers the attempt.
    ///
    /// # Errors
    /// `Checksum`.
    pub fn check_attempt(bytes: &[u8], attempt: AttemptId) -> Result<(), FormatError> {
        let at = bytes.len().saturating_sub(TRAILER_BYTES);
        let last = &bytes[at..];
        let split = TRAILER_BYTES - 12;
        let needed = FormatError::Short {
            what: "the trailer",
            needed: TRAILER_BYTES as u64,
            available: last.len() as u64,
        };
        let (covered, rest) = last.split_at_checked(split).ok_or(needed)?;
        let stored = Fields::new("the trailer", rest).u32()?;
        let computed = crc32c_append(crc32c(&attempt.0), covered);
        check_crc("the trailer", stored, computed)
    }
}

fn check_version(version: u16) -> Result<(), FormatError> {
    match version {
        VERSION => Ok(()),
        0 => Err(FormatError::invalid("it has no version")),
        other => Err(FormatError::Newer(format!("version {other} of the format"))),
    }
}

pub(crate) fn check_crc(what: &str, stored: u32, computed: u32) -> Result<(), FormatError> {
    if stored == computed {
        return Ok(());
    }
    Err(FormatError::Checksum {
        what: what.to_owned(),
        stored: stored.into(),
        computed: computed.into(),
    })
}
