//! The token of an HTTP request: nothing but its headers is read.

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Longest token.
const TOKEN_BYTES_MAX: usize = 8 << 10;
const SCHEME: &str = "bearer";

/// The token of `authorization: Bearer TOKEN`, if there is such a header.
///
/// # Errors
/// When there are several, or one that is no such header or too long: which identity is meant is
/// then not guessed.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err("there is more than one authorization header");
    }
    if value.len() > TOKEN_BYTES_MAX + SCHEME.len() + 1 {
        return Err("the authorization header is too long");
    }
    let text = value.to_str();
    let text = text.map_err(|_| "the authorization header is not printable")?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            let is_token = |byte: u8| byte.is_ascii_graphic();
            match !token.is_empty() && token.bytes().all(is_token) {
                true => Ok(Some(token)),
                false => Err("the bearer token is malformed"),
            }
        }
        _ => Err("the authorization header is not of the form `Bearer TOKEN`"),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn exactly_one_well_formed_header_counts() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_str(value).unwrap();
                headers.append(AUTHORIZATION, value);
            }
            bearer(&headers).map(|token| token.map(str::to_owned))
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["Bearer abc"]), Ok(Some("abc".to_owned())));
        assert_eq!(of(&["bearer abc"]), Ok(Some("abc".to_owned())));
        let longest = format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX));
        assert!(of(&[&longest]).is_ok());
        for bad in [
            vec!["Bearer a", "Bearer a"],
            vec!["Bearer"],
            vec!["Bearer "],
            vec!["Bearer a b"],
            vec!["Bearer  a"],
            vec!["Basic YTpi"],
            vec![""],
            vec![&format!("{longest}x")],
        ] {
            assert!(of(&bad).is_err(), "{:.40}", bad.concat());
        }
    }
}
