//! Paths with variables, as `google.api.http` writes them, of which one form is used here:
//! `/literal/{field}/{field.inner}`, where a variable is one whole segment.

use std::fmt;

/// A path with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// The path of a field, or a part of a name.
    Variable(String),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A message, when it is of another form.
    pub(crate) fn parse(text: &str) -> Result<Template, String> {
        let rest = text.strip_prefix('/');
        let rest = rest.ok_or_else(|| format!("the path {text} does not begin with a slash"))?;
        let segments = rest.split('/').map(|segment| {
            let inner = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            let is_name = |text: &str, more: &str| {
                let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                !text.is_empty() && text.chars().all(|c| allowed(c) || more.contains(c))
            };
            match inner {
                Some(name) if is_name(name, "_.") => Ok(Segment::Variable(name.to_owned())),
                None if is_name(segment, "-") => Ok(Segment::Literal(segment.to_owned())),
                _ => Err(format!("the path {text} has the segment {segment:?}")),
            }
        });
        segments.collect::<Result<_, _>>().map(Template)
    }

    /// The names of its variables, in order.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Variable(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// What a path has in place of the variables, still encoded. No variable is empty, so that a
    /// slash at the end makes another path.
    pub(crate) fn matches<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let mut found = Vec::new();
        let mut segments = path.strip_prefix('/')?.split('/');
        for expected in &self.0 {
            let segment = segments.next()?;
            match expected {
                Segment::Literal(literal) if literal == segment => {}
                Segment::Variable(_) if !segment.is_empty() => found.push(segment),
                _ => return None,
            }
        }
        segments.next().is_none().then_some(found)
    }

    /// Whether both have the same paths, whatever their variables are called.
    pub(crate) fn is_like(&self, other: &Template) -> bool {
        self.compare(other, |a, b| match (a, b) {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            (Segment::Variable(_), Segment::Variable(_)) => true,
            _ => false,
        })
    }

    /// Whether a path can be one of both.
    pub(crate) fn overlaps(&self, other: &Template) -> bool {
        self.compare(other, |a, b| match (a, b) {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            _ => true,
        })
    }

    fn compare(&self, other: &Template, alike: impl Fn(&Segment, &Segment) -> bool) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        self.0.len() == other.0.len() && pairs.all(|(a, b)| alike(a, b))
    }
}

/// What a variable is called outside: the last part of a field's path.
pub(crate) fn short(variable: &str) -> &str {
    variable.rsplit('.').next().unwrap_or(variable)
}

/// With the short names of its variables, as OpenAPI writes it.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.0 {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Variable(name) => write!(f, "/{{{}}}", short(name))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    #[test]
    fn a_variable_is_one_whole_segment() {
        let found = template("/v1/tenants/{scope.tenant}/topics/{topic}");
        let variables: Vec<_> = found.variables().collect();
        assert_eq!(variables, ["scope.tenant", "topic"]);
        assert_eq!(found.to_string(), "/v1/tenants/{tenant}/topics/{topic}");
        assert_eq!(
            found.matches("/v1/tenants/a/topics/b%2Fc"),
            Some(vec!["a", "b%2Fc"])
        );
        for other in [
            "",
            "/",
            "v1/tenants/a/topics/b",
            "/v1/tenants/a/topics",
            "/v1/tenants/a/topics/",
            "/v1/tenants/a/topics/b/",
            "/v1/tenants/a/topics/b/c",
            "/v1/tenants//topics/b",
            "//v1/tenants/a/topics/b",
            "/V1/tenants/a/topics/b",
            "/v1/tenan%74s/a/topics/b",
        ] {
            assert_eq!(found.matches(other), None, "{other}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "", "v1", "/", "/a/", "/{}", "/{a", "/a}", "/{a=*}", "/{a=b/*}", "/a:b", "/{A}", "/*",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn templates_that_share_paths_are_known() {
        let one = template("/a/{b}");
        assert!(one.is_like(&template("/a/{c}")));
        assert!(one.overlaps(&template("/a/literal")));
        assert!(!one.is_like(&template("/a/literal")));
        assert!(!one.overlaps(&template("/b/{b}")) && !one.overlaps(&template("/a/{b}/c")));
    }
}
