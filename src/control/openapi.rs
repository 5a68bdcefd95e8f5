//! Makes docs/openapi.json from the types, and holds the server to it.
//!
//! The schemas come from the types and their doc comments; what each request takes and answers is described
//! here. The document is committed so that programs can read it without building memvisor. After
//! a change `MEMVISOR_WRITE_OPENAPI=1 cargo test -p memvisor --lib openapi` writes it anew.

use std::collections::BTreeSet;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::routes::{OPENAPI, routes};
use super::tests::{Fault, Setup, raw, request, setup};
use super::*;
use crate::settings::VM_KEYS;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

/// A request as the document describes it.
struct Operation {
    request: &'static str,
    summary: &'static str,
    body: Option<Value>,
    /// Status code and schema of a success.
    success: (u16, Option<Value>),
    errors: &'static [(u16, &'static str)],
}

const NO_VM: (u16, &str) = (404, "No VM of that name runs.");
const NO_SETTING: (u16, &str) = (404, "There is no setting of that name.");
const NO_JSON: (u16, &str) = (400, "The body is not JSON.");
const NOT_ALLOWED: (u16, &str) = (422, "The body asks for what is not allowed.");

fn schema<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

fn operation(request: &'static str, summary: &'static str, success: Value) -> Operation {
    Operation {
        request,
        summary,
        body: None,
        success: (200, Some(success)),
        errors: &[],
    }
}

fn vm_operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let status = schema::<HostStatus>(schemas);
    let vm = schema::<VmStatus>(schemas);
    let vms = json!({"type": "array", "items": vm});
    let why = json!({"type": "object"});
    let patch = json!({"$ref": "#/components/schemas/VmPatch"});
    vec![
        operation("GET /v1/status", "The host and its VMs.", status),
        operation("GET /v1/vms", "The VMs.", vms),
        Operation {
            errors: &[NO_VM],
            ..operation("GET /v1/vms/{name}", "One VM.", vm.clone())
        },
        Operation {
            body: Some(patch),
            errors: &[
                NO_JSON,
                NO_VM,
                (409, "The host has not got what it takes."),
                NOT_ALLOWED,
            ],
            ..operation(
                "PATCH /v1/vms/{name}",
                "Changes settings of a VM, all of them or none.",
                vm.clone(),
            )
        },
        Operation {
            success: (204, None),
            errors: &[NO_VM],
            ..operation("DELETE /v1/vms/{name}", "Ends a VM.", Value::Null)
        },
        Operation {
            body: Some(schema::<BalloonRequest>(schemas)),
            errors: &[
                NO_JSON,
                NO_VM,
                (409, "No balloon agent is connected."),
                NOT_ALLOWED,
            ],
            ..operation(
                "PUT /v1/vms/{name}/balloon",
                "Sets the size of a balloon by hand, or gives it back to the policy.",
                vm,
            )
        },
        Operation {
            errors: &[NO_VM],
            ..operation(
                "GET /v1/vms/{name}/token",
                "What a balloon agent of a VM says in its START.",
                schema::<AgentToken>(schemas),
            )
        },
        Operation {
            errors: &[NO_VM],
            ..operation(
                "GET /v1/vms/{name}/why",
                "What the policy decided about a VM, and why.",
                why,
            )
        },
    ]
}

fn other_operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let setting = schema::<SettingView>(schemas);
    let settings = json!({"type": "array", "items": setting});
    vec![
        operation("GET /v1/settings", "All host settings.", settings),
        Operation {
            errors: &[NO_SETTING],
            ..operation(
                "GET /v1/settings/{name}",
                "One host setting.",
                setting.clone(),
            )
        },
        Operation {
            body: Some(schema::<SettingRequest>(schemas)),
            errors: &[NO_JSON, NO_SETTING, NOT_ALLOWED],
            ..operation(
                "PUT /v1/settings/{name}",
                "Sets a host setting until the host ends.",
                setting.clone(),
            )
        },
        Operation {
            errors: &[NO_SETTING],
            ..operation(
                "DELETE /v1/settings/{name}",
                "Takes away what was set at run time.",
                setting,
            )
        },
        Operation {
            errors: &[
                (409, "The host was started without a configuration file."),
                (422, "The file has a fault; nothing of it is applied."),
            ],
            ..operation(
                "POST /v1/reload",
                "Reads the configuration file again.",
                schema::<ReloadReport>(schemas),
            )
        },
        operation(
            "GET /v1/openapi.json",
            "This document.",
            json!({"type": "object"}),
        ),
    ]
}

/// The schema of [`VmPatch`], written by hand because its deserialiser is, too.
fn patch_schema() -> Value {
    let keys = VM_KEYS.iter().flat_map(|key| {
        let value = |text: String| {
            json!({"description": text, "type": ["string", "number", "boolean", "null"]})
        };
        let allowed = format!("{}. Allowed: {}.", key.effect, key.allowed);
        let again = format!("The same as `{}`, in ESX's words.", key.name);
        [(key.name, value(allowed)), (key.esx, value(again))]
    });
    let properties: Map<String, Value> = keys.map(|(key, v)| (key.to_owned(), v)).collect();
    json!({
        "description": "Settings of a VM; those that are missing stay as they are.",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn content(schema: &Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with(|s| s.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let error = schema::<ErrorBody>(&mut schemas);
    let mut paths = Map::new();
    let mut operations = vm_operations(&mut schemas);
    operations.append(&mut other_operations(&mut schemas));
    for operation in operations {
        let (method, path) = operation.request.split_once(' ').expect("method and path");
        let mut responses = Map::new();
        let (code, success) = operation.success;
        let mut response = json!({"description": "Done."});
        if let Some(success) = success {
            response["content"] = content(&success);
        }
        responses.insert(code.to_string(), response);
        let others = ("default".to_owned(), "The request failed otherwise.");
        let errors = operation
            .errors
            .iter()
            .map(|(code, when)| (code.to_string(), *when));
        for (code, when) in errors.chain([others]) {
            let response = json!({"description": when, "content": content(&error)});
            responses.insert(code, response);
        }
        let mut told = json!({"summary": operation.summary, "responses": responses});
        if let Some(body) = operation.body {
            told["requestBody"] = json!({"required": true, "content": content(&body)});
        }
        let item = paths.entry(path).or_insert_with(|| json!({}));
        if path.contains("{name}") {
            item["parameters"] = json!([{
                "name": "name", "in": "path", "required": true, "schema": {"type": "string"},
            }]);
        }
        item[method.to_lowercase()] = told;
    }
    let mut components = schemas.take_definitions(true);
    components.insert("VmPatch".to_owned(), patch_schema());
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
fn told(document: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, told) in item.as_object().expect("methods") {
            if method != "parameters" {
                found.push((format!("{} {path}", method.to_uppercase()), told));
            }
        }
    }
    found
}

#[test]
fn router_has_the_routes_of_the_document_and_no_other() {
    let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let documented: BTreeSet<String> = told(&document).into_iter().map(|(name, _)| name).collect();
    let routes = routes().into_iter();
    let served: BTreeSet<String> = routes.map(|r| format!("{} {}", r.method, r.path)).collect();
    assert_eq!(served, documented);
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
    ("GET /v1/vms/{name}/token", "/v1/vms/web/token", "", 200),
    ("GET /v1/vms/{name}/token", "/v1/vms/nope/token", "", 404),
    ("GET /v1/vms/{name}/why", "/v1/vms/web/why", "", 200),
    ("GET /v1/vms/{name}/why", "/v1/vms/nope/why", "", 404),
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
    let told = told(document);
    let (_, told) = told
        .iter()
        .find(|(name, _)| name == operation)
        .expect(operation);
    let responses = &told["responses"];
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
    for (fault, expected) in [
        (Fault::NoConfig, 409),
        (Fault::BadConfig, 422),
        (Fault::Stopping, 503),
    ] {
        setup.daemon.set_fault(fault);
        ask(&setup, "POST /v1/reload", "/v1/reload", "", expected);
    }
    let long = " ".repeat(REQUEST_BODY_MAX + 1);
    for (operation, told) in told(&document) {
        if told.get("requestBody").is_some() {
            let (_, path) = operation.split_once(' ').expect("method and path");
            let path = path.replace("{name}", "web");
            ask(&setup, &operation, &path, &long, 413);
        }
    }
    for (operation, told) in told(&document) {
        let codes = told["responses"].as_object().expect("responses").keys();
        // `default` stands for errors that every request can have.
        for code in codes.filter(|code| *code != "default") {
            let asked = seen.contains(&(operation.clone(), code.clone()));
            assert!(asked, "{operation} was never answered with {code}");
        }
    }
}
