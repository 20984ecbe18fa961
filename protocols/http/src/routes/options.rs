//! The options of a method, and the routes that they ask for.

use http::Method;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    MethodDescriptor,
};

use crate::json::lacks_form;
use crate::routes::{PREFIX, Paged, Route, RuleError, Set};
use crate::template::Template;

/// The options that methods have.
pub(super) struct Options {
    http: ExtensionDescriptor,
    rest: ExtensionDescriptor,
}

impl Options {
    /// Those of these descriptors.
    pub(super) fn of(pool: &DescriptorPool) -> Result<Options, RuleError> {
        let extension = |name: &str| {
            let found = pool.get_extension_by_name(name);
            found.ok_or_else(|| RuleError {
                rpc: name.to_owned(),
                wrong: "the descriptors lack this option".to_owned(),
            })
        };
        Ok(Options {
            http: extension("google.api.http")?,
            rest: extension("aquifer.v1.rest")?,
        })
    }

    /// The routes of a method; none without the option.
    ///
    /// # Errors
    /// What is wrong with its options.
    pub(super) fn routes(&self, method: &MethodDescriptor) -> Result<Vec<Route>, String> {
        let options = method.options();
        if !options.has_extension(&self.http) {
            return Ok(Vec::new());
        }
        if method.is_client_streaming() || method.is_server_streaming() {
            return Err("streams have no form in REST".to_owned());
        }
        for message in [method.input(), method.output()] {
            has_form(&message, &mut Vec::new())?;
        }
        let rest = options.get_extension(&self.rest);
        let rest = rest.as_message().ok_or("its option rest is no message")?;
        let rule = options.get_extension(&self.http);
        let rule = rule.as_message().ok_or("its option http is no message")?;
        let mut routes = vec![route(method, rule, rest)?];
        let more = rule.get_field_by_name("additional_bindings");
        let more = more.as_ref().and_then(|more| more.as_list());
        for rule in more.unwrap_or_default() {
            let rule = rule.as_message().ok_or("a binding is no message")?;
            routes.push(route(method, rule, rest)?);
        }
        Ok(routes)
    }
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    let value = value.as_ref().and_then(|value| value.as_str());
    value.unwrap_or_default().to_owned()
}

fn route(
    method: &MethodDescriptor,
    rule: &DynamicMessage,
    rest: &DynamicMessage,
) -> Result<Route, String> {
    let (verb, path) = verb_and_path(rule)?;
    let template = Template::parse(&path)?;
    let input = method.input();
    let sets = sets(&template, &input)?;
    let has_body = match text(rule, "body").as_str() {
        "" => false,
        "*" => true,
        other => return Err(format!("its body is {other:?}: give \"*\" or none")),
    };
    let takes_body = [Method::PUT, Method::POST, Method::PATCH].contains(&verb);
    if has_body && !takes_body || !has_body && verb == Method::POST {
        // A page of another site can have a browser send a POST without JSON.
        return Err(format!("{verb} and its body do not go together"));
    }
    let paged = paged(method, rest)?;
    let if_match = match text(rest, "if_match").as_str() {
        "" => None,
        name => Some(whole_number(&input, name)?),
    };
    let etag = match text(rest, "etag").as_str() {
        "" => Vec::new(),
        path => field_path(&method.output(), path)?,
    };
    let offered = offered(&input, &sets, paged.as_ref(), rest);
    let in_query = |field: &FieldDescriptor| {
        !field.is_list() && !matches!(field.kind(), Kind::Message(_) | Kind::Double)
    };
    if !has_body && !offered.iter().all(in_query) {
        return Err("a field has no form in a query: give it a body".to_owned());
    }
    let rpc = format!("/{}/{}", method.parent_service().full_name(), method.name());
    Ok(Route {
        rpc: rpc.parse().map_err(|_| "its name is no path".to_owned())?,
        method: method.clone(),
        verb,
        template,
        sets,
        has_body,
        offered,
        paged,
        etag,
        if_match,
    })
}

fn verb_and_path(rule: &DynamicMessage) -> Result<(Method, String), String> {
    let verbs = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    let mut verbs = verbs.into_iter();
    let (name, verb) = verbs
        .find(|(name, _)| rule.has_field_by_name(name))
        .ok_or("its path has no method of HTTP")?;
    let path = text(rule, name);
    if !path.starts_with(PREFIX) {
        return Err(format!("the path {path} does not begin with {PREFIX}"));
    }
    Ok((verb, path))
}

/// Fields that a request may give besides those of its path and its page.
fn offered(
    input: &MessageDescriptor,
    sets: &[Set],
    paged: Option<&Paged>,
    rest: &DynamicMessage,
) -> Vec<FieldDescriptor> {
    let omitted = rest.get_field_by_name("omit");
    let omitted = omitted.as_ref().and_then(|omitted| omitted.as_list());
    let omitted = omitted.unwrap_or_default();
    let is_offered = |field: &FieldDescriptor| {
        let is_set = sets.iter().any(|set| set.field.first() == Some(field));
        let is_page = paged.is_some_and(|paged| [&paged.after, &paged.limit].contains(&field));
        let mut names = omitted.iter().map(|name| name.as_str());
        let is_omitted = names.any(|name| name == Some(field.name()));
        !is_set && !is_page && !is_omitted
    };
    input.fields().filter(is_offered).collect()
}

/// What the variables set. One that is no field goes in front of the next that is.
fn sets(template: &Template, input: &MessageDescriptor) -> Result<Vec<Set>, String> {
    let mut sets = Vec::new();
    let mut from = 0;
    let mut at = 0;
    for variable in template.variables() {
        at += 1;
        let Ok(field) = field_path(input, variable) else {
            continue;
        };
        let is_text = field
            .last()
            .is_some_and(|field| field.kind() == Kind::String);
        if !is_text || field.iter().any(FieldDescriptor::is_list) {
            return Err(format!("the variable {variable} is no text"));
        }
        sets.push(Set {
            field,
            variables: from..at,
        });
        from = at;
    }
    match from == at {
        true => Ok(sets),
        false => Err("the last variables of its path are no fields".to_owned()),
    }
}

fn paged(method: &MethodDescriptor, rest: &DynamicMessage) -> Result<Option<Paged>, String> {
    let is_paged = rest.get_field_by_name("paged");
    if is_paged.and_then(|is_paged| is_paged.as_bool()) != Some(true) {
        return Ok(None);
    }
    let field = |message: MessageDescriptor, name: &str, kind: &Kind| {
        let found = message.get_field_by_name(name);
        found
            .filter(|field| field.kind() == *kind && !field.is_list())
            .ok_or_else(|| format!("a list in pages needs the field {name}"))
    };
    Ok(Some(Paged {
        after: field(method.input(), "after", &Kind::String)?,
        limit: field(method.input(), "limit", &Kind::Uint32)?,
        next: field(method.output(), "next", &Kind::String)?,
    }))
}

fn whole_number(message: &MessageDescriptor, name: &str) -> Result<FieldDescriptor, String> {
    let found = message.get_field_by_name(name);
    found
        .filter(|field| field.kind() == Kind::Uint64 && field.supports_presence())
        .ok_or_else(|| format!("{name} is no optional uint64"))
}

/// The fields that `outer.inner` names.
fn field_path(message: &MessageDescriptor, path: &str) -> Result<Vec<FieldDescriptor>, String> {
    let mut within = Some(message.clone());
    let mut fields = Vec::new();
    for name in path.split('.') {
        let field = within.and_then(|message| message.get_field_by_name(name));
        let field = field.ok_or_else(|| format!("there is no field {path}"))?;
        within = field.kind().as_message().cloned();
        fields.push(field);
    }
    Ok(fields)
}

/// Whether a message can be read and written.
fn has_form(message: &MessageDescriptor, seen: &mut Vec<MessageDescriptor>) -> Result<(), String> {
    if seen.contains(message) {
        return Ok(());
    }
    seen.push(message.clone());
    for field in message.fields() {
        if let Some(why) = lacks_form(&field) {
            return Err(format!("{}: {why}", field.full_name()));
        }
        if let Kind::Message(inner) = field.kind() {
            has_form(&inner, seen)?;
        }
    }
    Ok(())
}
