//! What a server prints on standard output when it serves: one line that ends in "ready in N ms",
//! or one JSON object. Scripts wait for it.

use aquifer_model::listener::Listeners;
use serde_json::{Map, Value, json};

use crate::exit::CliError;
use crate::output::Output;

/// The greeting of a role, without what every role adds to it.
#[derive(Debug)]
pub struct Greeting {
    role: &'static str,
    serves: String,
    fields: Map<String, Value>,
    next: Vec<String>,
}

impl Greeting {
    /// A greeting of a role that `serves` something: the middle of its sentence.
    pub fn new(role: &'static str, serves: String) -> Greeting {
        Greeting {
            role,
            serves,
            fields: Map::new(),
            next: Vec::new(),
        }
    }

    /// Adds a field of the JSON object.
    pub fn field(mut self, name: &str, value: impl Into<String>) -> Greeting {
        self.fields
            .insert(name.to_owned(), Value::String(value.into()));
        self
    }

    /// Adds where the process is reached, by the names of its listeners.
    pub fn listeners(mut self, listeners: &Listeners) -> Greeting {
        let all = listeners.iter();
        let all = all.map(|one| (one.name.to_string(), json!(one.url)));
        self.fields
            .insert("listeners".to_owned(), Value::Object(all.collect()));
        self
    }

    /// Adds lines for people, below the first.
    pub fn next(mut self, lines: Vec<String>) -> Greeting {
        self.next = lines;
        self
    }

    /// Prints it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, http: &str, ready_ms: u64, out: &Output) -> Result<(), CliError> {
        if out.is_json() {
            out.object(&self.object(http, ready_ms))?;
        } else {
            out.line(self.line(http, ready_ms))?;
            for line in &self.next {
                out.line(line)?;
            }
        }
        out.flush()
    }

    fn object(&self, http: &str, ready_ms: u64) -> Value {
        let mut object = self.fields.clone();
        object.insert("role".to_owned(), json!(self.role));
        object.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        object.insert("http".to_owned(), json!(http));
        object.insert("pid".to_owned(), json!(std::process::id()));
        object.insert("ready_ms".to_owned(), json!(ready_ms));
        Value::Object(object)
    }

    fn line(&self, http: &str, ready_ms: u64) -> String {
        format!(
            "aquifer {} {} {}, metrics on {http}/metrics, ready in {ready_ms} ms",
            self.role,
            env!("CARGO_PKG_VERSION"),
            self.serves
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_ends_with_the_time_and_the_object_has_what_every_role_adds() {
        let http = "https://127.0.0.1:7680";
        let greeting =
            Greeting::new("broker", "of cluster c serves u".to_owned()).field("url", "u");
        let line = greeting.line(http, 23);
        assert!(line.starts_with("aquifer broker "), "{line}");
        assert!(
            line.contains(" of cluster c serves u, metrics on https://127.0.0.1:7680/metrics,"),
            "{line}"
        );
        assert!(line.ends_with("ready in 23 ms"), "{line}");
        let object = greeting.object(http, 23);
        assert_eq!(
            (&object["role"], &object["url"]),
            (&json!("broker"), &json!("u"))
        );
        assert_eq!(object["http"], http);
        assert_eq!(object["ready_ms"], 23);
        assert!(object["pid"].is_u64() && object["version"].is_string());
    }
}
