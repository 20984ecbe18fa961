//! Properties as they are given: `k=v`.

/// A property.
///
/// # Errors
/// When it has no name, or no `=`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a property is KEY=VALUE".to_owned()),
    }
}
