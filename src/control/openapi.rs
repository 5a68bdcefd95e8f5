//! Makes docs/openapi.json from the routes and their types, and holds the server to it.
//!
//! The schemas come from the types and their doc comments. The document is committed so that programs can read it without building memvisor. After
//! a change `MEMVISOR_WRITE_OPENAPI=1 cargo test -p memvisor --lib openapi` writes it anew.

use std::borrow::Cow;
use std::collections::BTreeSet;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::routes::{OPENAPI, Route, routes};
use super::tests::{Fault, Setup, raw, request, setup};
use super::*;
use crate::settings::{POOL_KEYS, VM_KEYS};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

/// Written by hand because its deserialiser is, too.
impl JsonSchema for VmPatch {
    fn schema_name() -> Cow<'static, str> {
        "VmPatch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let keys = VM_KEYS.iter().flat_map(|key| {
            let value = |text: String| {
                json!({"description": text, "type": ["string", "number", "boolean", "null"]})
            };
            let allowed = format!("{}. Allowed: {}.", key.effect, key.allowed);
            let again = format!("The same as `{}`, in ESX's words.", key.name);
            [(key.name, value(allowed)), (key.esx, value(again))]
        });
        let properties: Map<String, Value> = keys.map(|(key, v)| (key.to_owned(), v)).collect();
        json_schema!({
            "description": "Settings of a VM; those that are missing stay as they are.",
            "type": "object",
            "properties": properties,
            "additionalProperties": false,
        })
    }
}

/// Written by hand because its deserialiser is, too.
impl JsonSchema for PoolPatch {
    fn schema_name() -> Cow<'static, str> {
        "PoolPatch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let keys = POOL_KEYS.iter().map(|key| {
            let text = format!("{}. Allowed: {}.", key.effect, key.allowed);
            let value =
                json!({"description": text, "type": ["string", "number", "boolean", "null"]});
            (key.name.to_owned(), value)
        });
        let properties: Map<String, Value> = keys.collect();
        json_schema!({
            "description": "Settings of a resource pool; those that are missing stay as they are.",
            "type": "object",
            "properties": properties,
            "additionalProperties": false,
        })
    }
}

fn content(schema: &Schema) -> Value {
    json!({"application/json": {"schema": schema}})
}

/// The refusals of requests that name a VM or a setting, and of those with a body.
const COMMON: [(&str, u16, &str); 4] = [
    ("/vms/{name}", 404, "No VM of that name runs."),
    ("/settings/{name}", 404, "There is no setting of that name."),
    ("body", 400, "The body is not JSON."),
    ("body", 422, "The body asks for what is not allowed."),
];

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let (status, success) = (route.answer)(schemas);
    let mut response = json!({"description": "Done."});
    if let Some(success) = success {
        response["content"] = content(&success);
    }
    let mut responses = Map::from_iter([(status.as_str().to_owned(), response)]);
    let body = (route.body)(schemas);
    let common = COMMON
        .iter()
        .filter(|(of, ..)| route.request.contains(of) || (*of == "body" && body.is_some()));
    let common = common.map(|(_, code, when)| (code.to_string(), *when));
    let own = (route.refusals.iter()).map(|(code, when)| (code.to_string(), *when));
    let others = ("default".to_owned(), "The request failed otherwise.");
    let error = schemas.subschema_for::<ErrorBody>();
    for (code, when) in common.chain(own).chain([others]) {
        let response = json!({"description": when, "content": content(&error)});
        responses.insert(code, response);
    }
    let mut operation = json!({"summary": route.summary, "responses": responses});
    if let Some(body) = body {
        operation["requestBody"] = json!({"required": true, "content": content(&body)});
    }
    operation
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with(|s| s.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in routes() {
        let (method, path) = Route::parts(route.request);
        let item = paths.entry(path).or_insert_with(|| json!({}));
        if path.contains("{name}") {
            item["parameters"] = json!([{
                "name": "name", "in": "path", "required": true, "schema": {"type": "string"},
            }]);
        }
        item[method.as_str().to_lowercase()] = operation(&route, &mut schemas);
    }
    let components = schemas.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "memvisor",
            "version": "1",
            "description": "The control API of a memvisor host: HTTP over the Unix socket \
                            control.sock in its runtime directory.",
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": components},
    })
}

#[test]
fn document_is_what_the_types_say() {
    let made = document();
    if std::env::var_os("MEMVISOR_WRITE_OPENAPI").is_some() {
        let text = serde_json::to_string_pretty(&made).expect("plain data");
        std::fs::write(PATH, text + "\n").expect("write docs/openapi.json");
        return;
    }
    let committed: Value = serde_json::from_str(OPENAPI).expect("JSON");
    assert!(
        committed == made,
        "docs/openapi.json is not what the types say: \
         `MEMVISOR_WRITE_OPENAPI=1 cargo test -p memvisor --lib openapi` writes it"
    );
}

/// Each request of the document, such as `GET /v1/vms/{name}`, with its description.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            if method != "parameters" {
                found.push((format!("{} {path}", method.to_uppercase()), operation));
            }
        }
    }
    found
}

#[test]
fn document_is_served_byte_by_byte() {
    let setup = setup();
    let (status, body) = raw(&setup.socket, &request("GET /v1/openapi.json", ""));
    let file = std::fs::read_to_string(PATH).expect("docs/openapi.json");
    assert!(status == 200 && body == file);
}

/// Requests of each kind with the status they must get: operation, path, body, status.
const REQUESTS: &[(&str, &str, &str, u16)] = &[
    ("GET /v1/status", "/v1/status", "", 200),
    ("GET /v1/vms", "/v1/vms", "", 200),
    ("GET /v1/vms/{name}", "/v1/vms/web", "", 200),
    ("GET /v1/vms/{name}", "/v1/vms/nope", "", 404),
    (
        "PATCH /v1/vms/{name}",
        "/v1/vms/web",
        r#"{"limit": "128M", "shares": 7}"#,
        200,
    ),
    (
        "PATCH /v1/vms/{name}",
        "/v1/vms/web",
        r#"{"limit": "128M""#,
        400,
    ),
    ("PATCH /v1/vms/{name}", "/v1/vms/nope", "{}", 404),
    (
        "PATCH /v1/vms/{name}",
        "/v1/vms/web",
        r#"{"swap-dir": "/full"}"#,
        409,
    ),
    (
        "PATCH /v1/vms/{name}",
        "/v1/vms/web",
        r#"{"limit": "1T"}"#,
        422,
    ),
    ("DELETE /v1/vms/{name}", "/v1/vms/web", "", 204),
    ("DELETE /v1/vms/{name}", "/v1/vms/nope", "", 404),
    (
        "PUT /v1/vms/{name}/balloon",
        "/v1/vms/web/balloon",
        r#"{"target_bytes": 4096}"#,
        200,
    ),
    (
        "PUT /v1/vms/{name}/balloon",
        "/v1/vms/web/balloon",
        "{",
        400,
    ),
    (
        "PUT /v1/vms/{name}/balloon",
        "/v1/vms/nope/balloon",
        r#"{"target_bytes": null}"#,
        404,
    ),
    (
        "PUT /v1/vms/{name}/balloon",
        "/v1/vms/database-primary-01/balloon",
        r#"{"target_bytes": 4096}"#,
        409,
    ),
    (
        "PUT /v1/vms/{name}/balloon",
        "/v1/vms/web/balloon",
        "{}",
        422,
    ),
    (
        "PUT /v1/vms/{name}/unswap",
        "/v1/vms/web/unswap",
        r#"{"pages_per_s": 4096}"#,
        200,
    ),
    ("PUT /v1/vms/{name}/unswap", "/v1/vms/web/unswap", "{", 400),
    (
        "PUT /v1/vms/{name}/unswap",
        "/v1/vms/nope/unswap",
        r#"{"pages_per_s": null}"#,
        404,
    ),
    ("PUT /v1/vms/{name}/unswap", "/v1/vms/web/unswap", "{}", 422),
    ("GET /v1/vms/{name}/token", "/v1/vms/web/token", "", 200),
    ("GET /v1/vms/{name}/token", "/v1/vms/nope/token", "", 404),
    ("GET /v1/vms/{name}/why", "/v1/vms/web/why", "", 200),
    ("GET /v1/vms/{name}/why", "/v1/vms/nope/why", "", 404),
    ("GET /v1/share/estimate", "/v1/share/estimate", "", 200),
    ("GET /v1/pools", "/v1/pools", "", 200),
    ("GET /v1/pools/{name}", "/v1/pools/prod", "", 200),
    ("GET /v1/pools/{name}", "/v1/pools/nope", "", 404),
    ("PUT /v1/pools/{name}", "/v1/pools/new", "{}", 200),
    ("PUT /v1/pools/{name}", "/v1/pools/new", "{", 400),
    ("PUT /v1/pools/{name}", "/v1/pools/prod", "{}", 409),
    ("PUT /v1/pools/{name}", "/v1/pools/new", r#"{"x": 1}"#, 422),
    ("PATCH /v1/pools/{name}", "/v1/pools/prod", "{}", 200),
    ("PATCH /v1/pools/{name}", "/v1/pools/prod", "{", 400),
    ("PATCH /v1/pools/{name}", "/v1/pools/nope", "{}", 404),
    (
        "PATCH /v1/pools/{name}",
        "/v1/pools/prod",
        r#"{"limit": "1M"}"#,
        409,
    ),
    (
        "PATCH /v1/pools/{name}",
        "/v1/pools/prod",
        r#"{"x": 1}"#,
        422,
    ),
    ("DELETE /v1/pools/{name}", "/v1/pools/empty", "", 204),
    ("DELETE /v1/pools/{name}", "/v1/pools/nope", "", 404),
    ("DELETE /v1/pools/{name}", "/v1/pools/prod", "", 409),
    ("GET /v1/settings", "/v1/settings", "", 200),
    (
        "GET /v1/settings/{name}",
        "/v1/settings/mem.idletax",
        "",
        200,
    ),
    (
        "GET /v1/settings/{name}",
        "/v1/settings/Mem.IdelTax",
        "",
        404,
    ),
    (
        "PUT /v1/settings/{name}",
        "/v1/settings/Mem.IdleTax",
        r#"{"value": 50}"#,
        200,
    ),
    (
        "PUT /v1/settings/{name}",
        "/v1/settings/Mem.IdleTax",
        r#"{"value": 50"#,
        400,
    ),
    (
        "PUT /v1/settings/{name}",
        "/v1/settings/Mem.IdelTax",
        r#"{"value": 50}"#,
        404,
    ),
    (
        "PUT /v1/settings/{name}",
        "/v1/settings/Mem.IdleTax",
        r#"{"value": "50s"}"#,
        422,
    ),
    (
        "DELETE /v1/settings/{name}",
        "/v1/settings/Mem.IdleTax",
        "",
        200,
    ),
    ("DELETE /v1/settings/{name}", "/v1/settings/x", "", 404),
    ("POST /v1/reload", "/v1/reload", "", 200),
    ("GET /v1/openapi.json", "/v1/openapi.json", "", 200),
];

/// Asserts that an answer is what the document says of its request and status. Fields that the document does
/// not name fail here, although a client should put up with them.
fn check(document: &Value, operation: &str, status: u16, body: &str) {
    let operations = operations(document);
    let (_, described) = operations
        .iter()
        .find(|(name, _)| name == operation)
        .expect(operation);
    let responses = &described["responses"];
    let response = responses.get(status.to_string());
    let response = response.unwrap_or(&responses["default"]);
    let Some(content) = response.get("content") else {
        assert_eq!(body, "", "{operation} {status}");
        return;
    };
    let mut strict = document["components"].clone();
    for schema in strict["schemas"]
        .as_object_mut()
        .expect("schemas")
        .values_mut()
    {
        if schema.get("properties").is_some() {
            schema["additionalProperties"] = false.into();
        }
    }
    let mut schema = content["application/json"]["schema"].clone();
    schema["components"] = strict;
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let body: Value = serde_json::from_str(body).expect("JSON");
    let wrong: Vec<String> = validator
        .iter_errors(&body)
        .map(|e| e.to_string())
        .collect();
    assert!(
        wrong.is_empty(),
        "{operation} {status}: {wrong:#?}\n{body:#}"
    );
}

#[test]
fn every_answer_of_the_server_is_as_documented() {
    let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let mut seen = BTreeSet::new();
    let mut ask = |setup: &Setup, operation: &str, path: &str, body: &str, expected: u16| {
        let (method, _) = operation.split_once(' ').expect("method and path");
        let line = format!("{method} {path}");
        let (status, answer) = raw(&setup.socket, &request(&line, body));
        assert_eq!(status, expected, "{line} {body}: {answer}");
        check(&document, operation, status, &answer);
        seen.insert((operation.to_owned(), status.to_string()));
    };
    let setup = setup();
    for (operation, path, body, expected) in REQUESTS {
        ask(&setup, operation, path, body, *expected);
    }
    setup.daemon.set_fault(Fault::Surveying);
    let estimate = "GET /v1/share/estimate";
    ask(&setup, estimate, "/v1/share/estimate", "", 409);
    for (fault, expected) in [
        (Fault::NoConfig, 409),
        (Fault::BadConfig, 422),
        (Fault::Stopping, 503),
    ] {
        setup.daemon.set_fault(fault);
        ask(&setup, "POST /v1/reload", "/v1/reload", "", expected);
    }
    let long = " ".repeat(REQUEST_BODY_MAX + 1);
    for (name, operation) in operations(&document) {
        if operation.get("requestBody").is_some() {
            let (_, path) = name.split_once(' ').expect("method and path");
            let path = path.replace("{name}", "web");
            ask(&setup, &name, &path, &long, 413);
        }
    }
    for (name, operation) in operations(&document) {
        let codes = operation["responses"]
            .as_object()
            .expect("responses")
            .keys();
        // `default` stands for errors that every request can have.
        for code in codes.filter(|code| *code != "default") {
            let asked = seen.contains(&(name.clone(), code.clone()));
            assert!(asked, "{name} was never answered with {code}");
        }
    }
}
