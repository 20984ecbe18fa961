//! Texts of a URL: percent-decoded once, strictly.

use percent_encoding::percent_decode_str;

/// A segment of a path.
pub(crate) fn segment(text: &str) -> Result<String, &'static str> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let digits = bytes.get(at + 1..at + 3);
        let escapes = digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        if *byte == b'%' && !escapes {
            return Err("a percent sign is not followed by two hexadecimal digits");
        }
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(String::from)
        .map_err(|_| "it is not UTF-8 once decoded")
}

/// A query as names and values, in order; `+` is a space there.
pub(crate) fn query(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let parameters = text.split('&').map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let plain = |text: &str| segment(&text.replace('+', " "));
        Ok((plain(name)?, plain(value)?))
    });
    parameters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_decoded_once() {
        assert_eq!(segment("a%2Fb+c%2525").as_deref(), Ok("a/b+c%25"));
        for bad in ["%", "%2", "%zz", "a%", "%ff", "%c3%28"] {
            assert!(segment(bad).is_err(), "{bad}");
        }
        assert_eq!(segment("%00").as_deref(), Ok("\0"), "for names to refuse");
    }

    #[test]
    fn a_plus_is_a_space_in_queries_alone() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let found = query("a+b=1%2B1&c&d==").unwrap();
        assert_eq!(found, [pair("a b", "1+1"), pair("c", ""), pair("d", "=")]);
        assert_eq!(query(""), Ok(Vec::new()));
        assert!(query("a=%f").is_err());
    }
}
