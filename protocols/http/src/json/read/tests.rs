use aquifer_proto::DESCRIPTORS;
use prost::Message;
use prost_reflect::{DescriptorPool, ReflectMessage};
use serde_json::json;

use super::*;
use crate::json::{parse, write};

fn read(message: &str, json: &Json) -> Result<DynamicMessage, Vec<Violation>> {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let name = format!("aquifer.v1.{message}");
    let descriptor = pool.get_message_by_name(&name).unwrap();
    let offered: Vec<_> = descriptor.fields().collect();
    let mut message = DynamicMessage::new(descriptor);
    let mut reader = Reader::default();
    reader.fields(&mut message, json.as_object().unwrap(), &offered, "");
    match reader.violations() {
        none if none.is_empty() => Ok(message),
        violations => Err(violations),
    }
}

fn refused(message: &str, json: &Json) -> String {
    let violations = read(message, json).unwrap_err();
    format!("{}: {}", violations[0].field, violations[0].reason)
}

#[test]
fn a_message_survives_its_json() {
    let given = json!({
        "scope": {"topic": "a/b/c"},
        "set": {
            "persistence": {"ensemble": 3, "writeQuorum": 3, "ackQuorum": 2},
            "retention": {"timeMs": "18446744073709551615", "sizeBytes": "0"},
            "rollover": {"sizeBytes": "9007199254740991", "ageMs": "1", "entries": "7"},
            "deduplication": false,
        },
        "unset": ["autoCreateTopics"],
        "version": "17",
    });
    let message = read("UpdatePoliciesRequest", &given).unwrap();
    let mut text = String::new();
    write(&message, None, &mut text);
    assert_eq!(parse(text.as_bytes()), Ok(given));
}

#[test]
fn what_could_be_meant_in_two_ways_is_refused() {
    let rollover = |entries: Json| json!({"rollover": {"entries": entries}});
    let bytes = |entries: Json| {
        let message = read("Policies", &rollover(entries)).unwrap();
        message.encode_to_vec()
    };
    let exact = bytes(json!(9_007_199_254_740_991_u64));
    assert_eq!(exact, bytes(json!("9007199254740991")));
    for (entries, hint) in [
        (json!(9_007_199_254_740_992_u64), "as texts"),
        (json!("18446744073709551616"), "0 to 18446744073709551615"),
        (parse(b"18446744073709551616").unwrap(), "0 to"),
        (parse(b"1e3").unwrap(), "0 to"),
        (json!(1.0), "0 to"),
        (json!(-1), "0 to"),
        (json!("05"), "0 to"),
        (json!("+5"), "0 to"),
        (json!("-0"), "0 to"),
        (json!(" 5"), "0 to"),
        (json!(""), "0 to"),
        (json!(true), "0 to"),
        (json!(null), "leave it out"),
        (json!([1]), "0 to"),
    ] {
        let said = refused("Policies", &rollover(entries));
        assert!(said.starts_with("rollover.entries: "), "{said}");
        assert!(said.contains(hint), "{said}");
    }
    for (json, hint) in [
        (json!({"deduplication": "true"}), "true or false"),
        (json!({"deduplication": null}), "leave it out"),
        (json!({"auto_create_topics": true}), "no such field"),
        (json!({"AutoCreateTopics": true}), "no such field"),
        (json!({"persistence": {"ensemble": "3"}}), "0 to 4294967295"),
        (
            json!({"persistence": {"ensemble": 4_294_967_296_u64}}),
            "0 to",
        ),
        (json!({"persistence": []}), "give an object"),
        (
            json!({"persistence": {"ensemble": 1, "more": {}}}),
            "no such field",
        ),
    ] {
        let said = refused("Policies", &json);
        assert!(said.contains(hint), "{said}");
    }
    let both = json!({"scope": {"tenant": "a", "topic": "b"}});
    assert!(refused("GetPoliciesRequest", &both).contains("exclude"));
    let list = json!({"unset": ["retention", 7, 8]});
    assert_eq!(
        refused("UpdatePoliciesRequest", &list),
        "unset[1]: give a text"
    );
    let level = json!({"policy": "retention", "level": 2});
    assert!(refused("PolicyOrigin", &level).contains("the name of a value"));
    let level = json!({"policy": "retention", "level": "TOPIC"});
    assert!(refused("PolicyOrigin", &level).contains("POLICY_LEVEL_TOPIC"));
    let bytes = json!({"incarnation": "AAE"});
    assert!(refused("DescribeTopicResponse", &bytes).contains("base64"));
}

#[test]
fn texts_of_queries_are_as_strict() {
    let of = |kind: &Kind, text: &str| from_text(kind, text);
    assert_eq!(of(&Kind::Bool, "true"), Ok(Value::Bool(true)));
    assert_eq!(of(&Kind::Uint32, "7"), Ok(Value::U32(7)));
    assert_eq!(of(&Kind::Int64, "-7"), Ok(Value::I64(-7)));
    assert_eq!(of(&Kind::String, ""), Ok(Value::String(String::new())));
    for (kind, text) in [
        (Kind::Bool, ""),
        (Kind::Bool, "1"),
        (Kind::Bool, "TRUE"),
        (Kind::Uint32, "-1"),
        (Kind::Uint32, "01"),
        (Kind::Uint32, "4294967296"),
        (Kind::Int64, "-0"),
        (Kind::Double, "1"),
    ] {
        assert!(of(&kind, text).is_err(), "{kind:?} {text}");
    }
}

#[test]
fn many_wrong_fields_are_noted_up_to_a_bound() {
    let many = (0..1000).map(|n| (format!("f{n}"), Json::Null)).collect();
    let violations = read("Policies", &Json::Object(many)).unwrap_err();
    assert_eq!(violations.len(), VIOLATIONS_MAX);
    assert_eq!(
        read("Policies", &json!({})).unwrap().descriptor().name(),
        "Policies"
    );
}
