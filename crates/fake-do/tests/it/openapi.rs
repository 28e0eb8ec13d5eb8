//! What of an OpenAPI 3.0 document is needed to check requests and answers.
//!
//! `tests/data/digitalocean-openapi.json` is a cut of the published document
//! (Apache-2.0, see its `info`). Checked are types, `nullable`, `required`,
//! `enum`, lengths and bounds, `allOf`, `anyOf` and `oneOf`; not patterns and
//! formats. This dialect is not JSON Schema: `nullable` is its own.

use bulkhead_fake_do::Exchange;
use serde_json::Value;

pub(crate) struct Document(Value);

impl Document {
    pub(crate) fn read() -> Self {
        Self(serde_json::from_str(include_str!("../data/digitalocean-openapi.json")).unwrap())
    }

    /// What of an exchange is not as the document has it.
    pub(crate) fn check(&self, exchange: &Exchange) -> Vec<String> {
        let mut wrong = Vec::new();
        let Some((path, operation)) = self.operation(&exchange.method, &exchange.path) else {
            return vec!["there is no such request".to_owned()];
        };
        let parameters = [&operation["parameters"], &self.0["paths"][path]["parameters"]];
        let parameters: Vec<&Value> =
            parameters.iter().filter_map(|list| list.as_array()).flatten().map(|one| self.followed(one)).collect();
        for (name, text) in &exchange.query {
            match parameters.iter().find(|one| one["in"] == "query" && one["name"] == **name) {
                Some(parameter) => {
                    let value = text.parse::<u64>().map_or_else(|_| Value::from(text.as_str()), Value::from);
                    self.fits(&value, &parameter["schema"], &format!("query {name}"), &mut wrong);
                }
                None => wrong.push(format!("there is no parameter {name}")),
            }
        }
        let schema = |content: &Value| content["content"]["application/json"]["schema"].clone();
        let wanted = schema(self.followed(&operation["requestBody"]));
        match (&exchange.body, wanted.is_null()) {
            (Some(body), false) => self.fits(body, &wanted, "request", &mut wrong),
            (Some(_), true) => wrong.push("a body where none is wanted".to_owned()),
            (None, false) => wrong.push("no body".to_owned()),
            (None, true) => {}
        }
        if let Some(answer) = &exchange.answer {
            let responses = &operation["responses"];
            let named = &responses[exchange.status.to_string()];
            let response = self.followed(if named.is_null() { &responses["default"] } else { named });
            self.fits(answer, &schema(response), &format!("answer {}", exchange.status), &mut wrong);
        }
        wrong
    }

    fn operation(&self, method: &str, path: &str) -> Option<(&String, &Value)> {
        let is_it = |template: &str| {
            template.split('/').count() == path.split('/').count()
                && template.split('/').zip(path.split('/')).all(|(want, have)| want.starts_with('{') || want == have)
        };
        let (template, found) = self.0["paths"].as_object()?.iter().find(|(template, _)| is_it(template))?;
        Some((template, found.get(method.to_lowercase())?))
    }

    fn followed<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let target = self.0.pointer(reference.strip_prefix('#').unwrap());
                self.followed(target.unwrap_or_else(|| panic!("{reference} is not in the cut")))
            }
            None => value,
        }
    }

    /// Whether a schema lets `null` in; one that says nothing of types lets in anything.
    fn takes_null(&self, schema: &Value) -> bool {
        let schema = self.followed(schema);
        let parts = |key: &str| schema[key].as_array().cloned().unwrap_or_default();
        schema["nullable"] == true
            || schema["type"].is_null()
                && parts("allOf").iter().all(|part| self.takes_null(part))
                && (schema["anyOf"].is_null() || parts("anyOf").iter().any(|part| self.takes_null(part)))
                && (schema["oneOf"].is_null() || parts("oneOf").iter().any(|part| self.takes_null(part)))
    }

    fn fits(&self, value: &Value, schema: &Value, at: &str, wrong: &mut Vec<String>) {
        let schema = self.followed(schema);
        if value.is_null() {
            if !self.takes_null(schema) {
                wrong.push(format!("{at} is null"));
            }
            return;
        }
        let is_kind = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("integer") => value.is_u64() || value.is_i64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            Some(other) => panic!("{other} is no type"),
            None => true,
        };
        if !is_kind {
            wrong.push(format!("{at} is {value}, which is not {}", schema["type"]));
            return;
        }
        if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
            wrong.push(format!("{at} is {value}, which is none of {allowed:?}"));
        }
        let number = |key: &str| schema[key].as_f64();
        if let Some(have) = value.as_f64()
            && (number("minimum").is_some_and(|least| have < least)
                || number("maximum").is_some_and(|most| have > most))
        {
            wrong.push(format!("{at} is {value}, which is out of bounds"));
        }
        if let (Some(text), Some(most)) = (value.as_str(), schema["maxLength"].as_u64())
            && text.len() as u64 > most
        {
            wrong.push(format!("{at} is too long"));
        }
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.is_object() && value.get(required).is_none() {
                wrong.push(format!("{at} has no {required}"));
            }
        }
        for (name, part) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = value.get(name) {
                self.fits(value, part, &format!("{at}.{name}"), wrong);
            }
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            self.fits(item, &schema["items"], &format!("{at}[{index}]"), wrong);
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.fits(value, part, at, wrong);
        }
        for (key, is_enough) in [("anyOf", (|count| count > 0) as fn(usize) -> bool), ("oneOf", |count| count == 1)] {
            if let Some(parts) = schema[key].as_array() {
                let tried = parts.iter().map(|part| {
                    let mut wrong = Vec::new();
                    self.fits(value, part, at, &mut wrong);
                    wrong
                });
                let tried: Vec<Vec<String>> = tried.collect();
                if !is_enough(tried.iter().filter(|wrong| wrong.is_empty()).count()) {
                    wrong.push(format!("{at} fits {key} wrongly: {tried:?}"));
                }
            }
        }
    }
}

/// The check notices.
#[test]
fn what_does_not_fit() {
    use serde_json::json;
    let document = Document::read();
    let exchange =
        |method: &str, path: &str, query: &[(&str, &str)], body: Value, status: u16, answer: Value| Exchange {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: Some(body).filter(|body| !body.is_null()),
            status,
            answer: Some(answer).filter(|answer| !answer.is_null()),
        };
    let droplets = "/v2/droplets";
    let order = json!({ "name": "a", "size": "s", "image": 7 });
    let no = Value::Null;
    for (exchange, expected) in [
        (exchange("POST", droplets, &[], order.clone(), 0, no.clone()), None),
        (
            exchange("POST", droplets, &[], json!({ "size": "s", "image": 7 }), 0, no.clone()),
            Some("fits oneOf wrongly"),
        ),
        (exchange("POST", droplets, &[], json!({ "name": "a", "size": 1, "image": 7 }), 0, no.clone()), Some("oneOf")),
        (exchange("POST", droplets, &[], no.clone(), 0, no.clone()), Some("no body")),
        (exchange("POST", droplets, &[], order.clone(), 202, json!({ "droplet": {}, "links": {} })), Some("has no id")),
        (exchange("POST", droplets, &[], order.clone(), 422, json!({ "message": "" })), Some("answer 422 has no id")),
        (exchange("GET", droplets, &[("per_page", "201")], no.clone(), 0, no.clone()), Some("out of bounds")),
        (exchange("GET", droplets, &[("label", "a")], no.clone(), 0, no.clone()), Some("no parameter label")),
        (exchange("GET", droplets, &[], no.clone(), 200, json!({ "droplets": [] })), Some("has no meta")),
        (exchange("DELETE", droplets, &[("tag_name", "a")], no.clone(), 0, no.clone()), Some("no such request")),
        (
            exchange("GET", "/v2/account", &[], no.clone(), 200, json!({ "account": { "status": "x" } })),
            Some("none of"),
        ),
    ] {
        let wrong = document.check(&exchange).join("; ");
        match expected {
            Some(expected) => assert!(wrong.contains(expected), "{wrong}"),
            None => assert_eq!(wrong, ""),
        }
    }
}
