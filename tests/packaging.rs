//! What can be told of `packaging/` without root, a network and an hour: whether the API of Kubernetes takes the objects
//! there, whether they, the image, the service and the profile of system calls agree with each other, and whether the
//! package has all that it names.
//!
//! An API server ignores a field that it does not know, so a misspelt limit is no limit. Here an object goes into the
//! types that are generated from the API's schema and out again: what the schema does not have is lost on the way.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PodSpec, Service};
use memvisor::machine::BudgetChoice;
use memvisor::settings::ConfigFile;
use memvisor::units::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const HOST: &str = "packaging/kubernetes/memvisor.yaml";
const GUEST: &str = "packaging/kubernetes/guest.yaml";
/// The file in which the kubelet finds the profile, and the one in the image.
const PROFILE: &str = "memvisor.json";
const PROFILE_IN_IMAGE: &str = "/usr/share/memvisor/seccomp.json";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn objects(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).expect(file)
}

/// The only object of its kind in a file, in the type of the API.
fn object<T: DeserializeOwned>(file: &str, kind: &str) -> T {
    let mut found: Vec<Value> = objects(file);
    found.retain(|object| object["kind"] == kind);
    let [object] = &found[..] else {
        panic!("{file} has {} objects of kind {kind}", found.len());
    };
    serde_json::from_value(object.clone()).expect(kind)
}

/// Says where an object is not one of the API.
fn check(object: &Value) -> Result<(), String> {
    match object["kind"].as_str() {
        Some("Namespace") => there_and_back::<Namespace>(object),
        Some("ConfigMap") => there_and_back::<ConfigMap>(object),
        Some("DaemonSet") => there_and_back::<DaemonSet>(object),
        Some("Service") => there_and_back::<Service>(object),
        Some("Job") => there_and_back::<Job>(object),
        kind => Err(format!("kind {kind:?} is none of those checked here")),
    }
}

/// The documented values of fields that are plain texts to the crate of the API, by the field, and the one that it is in
/// where another has the name too. <https://kubernetes.io/docs/reference/kubernetes-api/>
const ENUMS: [(&str, &str, &[&str]); 18] = [
    ("", "restartPolicy", &["Always", "OnFailure", "Never"]),
    ("", "imagePullPolicy", &["Always", "IfNotPresent", "Never"]),
    (
        "",
        "dnsPolicy",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    ),
    ("", "preemptionPolicy", &["PreemptLowerPriority", "Never"]),
    ("", "podManagementPolicy", &["OrderedReady", "Parallel"]),
    ("", "internalTrafficPolicy", &["Cluster", "Local"]),
    ("", "externalTrafficPolicy", &["Cluster", "Local"]),
    (
        "",
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
    ),
    ("", "protocol", &["TCP", "UDP", "SCTP"]),
    (
        "",
        "mountPropagation",
        &["None", "HostToContainer", "Bidirectional"],
    ),
    ("", "completionMode", &["NonIndexed", "Indexed"]),
    (
        "",
        "operator",
        &["Exists", "Equal", "In", "NotIn", "DoesNotExist", "Gt", "Lt"],
    ),
    (
        "",
        "effect",
        &["NoSchedule", "PreferNoSchedule", "NoExecute"],
    ),
    ("updateStrategy", "type", &["RollingUpdate", "OnDelete"]),
    (
        "seccompProfile",
        "type",
        &["Localhost", "RuntimeDefault", "Unconfined"],
    ),
    (
        "appArmorProfile",
        "type",
        &["Localhost", "RuntimeDefault", "Unconfined"],
    ),
    (
        "hostPath",
        "type",
        &[
            "",
            "DirectoryOrCreate",
            "Directory",
            "FileOrCreate",
            "File",
            "Socket",
            "CharDevice",
            "BlockDevice",
        ],
    ),
    (
        "labels",
        "pod-security.kubernetes.io/enforce",
        &["privileged", "baseline", "restricted"],
    ),
];

/// Says which field below `of`, which is called `name`, has a value that the API does not document for it. A type or policy
/// that is not in [`ENUMS`] is one that nobody has looked up.
fn documented(name: &str, of: &Value) -> Result<(), String> {
    match of {
        Value::Object(fields) => fields.iter().try_for_each(|(field, value)| {
            let Value::String(text) = value else {
                // The items of a list are of the name of the list.
                return documented(field, value);
            };
            let is_meant = |(place, known, _): &&(&str, &str, &[&str])| {
                known == field && (place.is_empty() || *place == name)
            };
            match ENUMS.iter().find(is_meant) {
                Some((.., allowed)) if allowed.contains(&text.as_str()) => Ok(()),
                Some((.., allowed)) => Err(format!(
                    "{name}.{field} is `{text}`; the API has {allowed:?}"
                )),
                None if field == "type" || field.ends_with("Policy") => {
                    Err(format!("{name}.{field}: its values are not known here"))
                }
                None => Ok(()),
            }
        }),
        Value::Array(items) => items.iter().try_for_each(|item| documented(name, item)),
        _ => Ok(()),
    }
}

fn there_and_back<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_path_to_error::deserialize(object).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(typed).map_err(|error| error.to_string())?;
    same(object, &back, "")
}

/// Says which part of `object` is not in `back`, or not the same there.
fn same(object: &Value, back: &Value, at: &str) -> Result<(), String> {
    match (object, back) {
        (Value::Object(fields), Value::Object(known)) => {
            fields.iter().try_for_each(|(name, value)| {
                let at = format!("{at}.{name}");
                let known = known.get(name).ok_or(format!("the API has no {at}"))?;
                same(value, known, &at)
            })
        }
        (Value::Array(items), Value::Array(known)) if items.len() == known.len() => {
            let mut pairs = (0..).zip(items.iter().zip(known));
            pairs.try_for_each(|(i, (item, known))| same(item, known, &format!("{at}[{i}]")))
        }
        _ if object == back => Ok(()),
        _ => Err(format!("{at} is {object}, and to the API {back}")),
    }
}

#[test]
fn objects_are_those_of_the_api() {
    for file in [HOST, GUEST] {
        for object in objects(file) {
            let checked = check(&object).and_then(|()| documented("", &object));
            assert_eq!(checked, Ok(()), "{file}: {}", object["kind"]);
        }
    }
}

/// Everything that can be misspelt: each field outside the maps whose keys are anybody's.
fn fields(value: &Value, at: &str, found: &mut Vec<String>) {
    const FREE: [&str; 8] = [
        "labels",
        "matchLabels",
        "annotations",
        "nodeSelector",
        "selector",
        "data",
        "limits",
        "requests",
    ];
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let at = format!("{at}/{name}");
                // The selector of a Service is such a map; that of a DaemonSet is not.
                let is_free = FREE.contains(&name.as_str()) && value.get("matchLabels").is_none();
                if !is_free {
                    fields(value, &at, found);
                }
                found.push(at);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                fields(item, &format!("{at}/{i}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn misspelt_field_is_found_wherever_it_is() {
    let mut tried = 0;
    for object in [HOST, GUEST].into_iter().flat_map(objects) {
        let mut places = Vec::new();
        fields(&object, "", &mut places);
        for place in places {
            let (parent, name) = place.rsplit_once('/').expect("a path");
            let mut wrong = object.clone();
            let parent = wrong.pointer_mut(parent).and_then(Value::as_object_mut);
            let parent = parent.expect("it was found there");
            let value = parent.remove(name).expect("it was found there");
            parent.insert(format!("{name}x"), value);
            assert!(check(&wrong).is_err(), "{place}x is taken");
            tried += 1;
        }
    }
    assert!(
        tried > 100,
        "only {tried} fields found: is the search right?"
    );
    let mut object = objects(HOST).swap_remove(2);
    object["spec"]["template"]["spec"]["hostPID"] = "yes".into();
    let error = check(&object).expect_err("a word is no truth value");
    assert!(error.contains("hostPID"), "{error}");
}

/// What is said by name in one place of a pod has to be there in another.
fn check_names(pod: &PodSpec) {
    let volumes: BTreeSet<&str> = pod.volumes.iter().flatten().map(|v| &*v.name).collect();
    let init = pod.init_containers.iter().flatten();
    let mut mounted = BTreeSet::new();
    for container in pod.containers.iter().chain(init) {
        mounted.extend(container.volume_mounts.iter().flatten().map(|m| &*m.name));
        let version = container
            .image
            .as_deref()
            .and_then(|i| i.rsplit(':').next());
        assert_eq!(
            version,
            Some(env!("CARGO_PKG_VERSION")),
            "{:?}",
            container.image
        );
    }
    assert_eq!(volumes, mounted, "volumes, and those mounted");
    let user = pod.security_context.as_ref().and_then(|s| s.run_as_user);
    let user = user.expect("a user");
    let image = read("packaging/Containerfile");
    assert!(
        image.contains(&format!("\nUSER {user}:{user}\n")),
        "user {user}"
    );
    assert!(image.contains(&format!(" --uid {user} ")), "user {user}");
}

/// The file name of the profile of system calls that a container runs with.
fn profile(container: &Container) -> Option<&str> {
    let security = container.security_context.as_ref()?;
    security
        .seccomp_profile
        .as_ref()?
        .localhost_profile
        .as_deref()
}

fn host_path<'a>(pod: &'a PodSpec, name: &str) -> Option<&'a str> {
    let volume = pod.volumes.iter().flatten().find(|v| v.name == name)?;
    Some(&volume.host_path.as_ref()?.path)
}

#[test]
fn values_that_the_api_does_not_have_are_found() {
    let mut tried = 0;
    for object in [HOST, GUEST].into_iter().flat_map(objects) {
        let mut places = Vec::new();
        fields(&object, "", &mut places);
        for place in places {
            let (parent, name) = place.rsplit_once('/').expect("a path");
            if !ENUMS.iter().any(|(_, known, _)| *known == name) {
                continue;
            }
            let mut wrong = object.clone();
            let value = wrong.pointer_mut(&place).expect("it was found there");
            *value = format!("{}x", value.as_str().expect("a text")).into();
            assert!(documented("", &wrong).is_err(), "{parent}: {name} is taken");
            tried += 1;
        }
    }
    assert!(tried >= 9, "only {tried} such fields found");
    // The API allows each of these alone, and not together.
    let set: DaemonSet = object(HOST, "DaemonSet");
    let pod = set.spec.and_then(|set| set.template.spec).expect("a pod");
    let restart = pod.restart_policy.unwrap_or("Always".to_owned());
    assert_eq!(restart, "Always", "a DaemonSet takes no other");
    let guest: Job = object(GUEST, "Job");
    let guest = guest.spec.and_then(|job| job.template.spec).expect("a pod");
    assert_ne!(guest.restart_policy.as_deref(), Some("Always"));
    assert!(guest.restart_policy.is_some(), "a Job must have one");
}

#[test]
fn objects_agree_with_each_other_and_with_the_image() {
    let set: DaemonSet = object(HOST, "DaemonSet");
    let set = set.spec.expect("a spec");
    let labels = set.template.metadata.expect("metadata").labels;
    assert_eq!(set.selector.match_labels, labels);
    let service: Service = object(HOST, "Service");
    let service = service.spec.expect("a spec");
    assert_eq!(service.selector, labels);

    let pod = set.template.spec.expect("a pod");
    check_names(&pod);
    let guest: Job = object(GUEST, "Job");
    let guest = guest.spec.and_then(|job| job.template.spec).expect("a pod");
    check_names(&guest);
    assert_eq!(host_path(&pod, "run"), host_path(&guest, "run"));

    let [host] = &pod.containers[..] else {
        panic!("one container");
    };
    assert_eq!(profile(host), Some(PROFILE));
    assert_eq!(profile(&guest.containers[0]), Some(PROFILE));
    let [init] = &pod.init_containers.expect("init containers")[..] else {
        panic!("one init container");
    };
    let script = init.args.as_ref().map(|args| args.join(" ")).expect("args");
    let copied = format!("{PROFILE_IN_IMAGE} /node/seccomp/{PROFILE}");
    assert!(script.contains(&copied), "{script}");
    let image = read("packaging/Containerfile");
    assert!(image.contains(&format!("packaging/seccomp.json {PROFILE_IN_IMAGE}\n")));
}

#[test]
fn limit_of_the_pod_holds_the_budget_and_the_daemon() {
    let map: ConfigMap = object(HOST, "ConfigMap");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("host.toml");
    fs::write(&path, &map.data.expect("data")["host.toml"]).expect("a file");
    let file = ConfigFile::load(&path).expect("the host takes it");
    let Some(BudgetChoice::Size(Bytes(budget))) = file.start.memory else {
        panic!("a budget of a size");
    };

    let set: DaemonSet = object(HOST, "DaemonSet");
    let pod = set.spec.and_then(|set| set.template.spec).expect("a pod");
    let [host] = &pod.containers[..] else {
        panic!("one container");
    };
    let resources = host.resources.as_ref().expect("resources");
    let memory = |of: &Option<std::collections::BTreeMap<_, _>>| {
        let quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
            of.as_ref().and_then(|of| of.get("memory"));
        let quantity = quantity.expect("of memory").0.clone();
        let mib: u64 = quantity
            .strip_suffix("Mi")
            .expect("MiB")
            .parse()
            .expect("a number");
        mib << 20
    };
    let limit = memory(&resources.limits);
    assert_eq!(
        limit,
        budget + budget / 8 + (64 << 20),
        "as docs/service.md has it"
    );
    assert_eq!(memory(&resources.requests), limit);

    let port = host
        .ports
        .as_ref()
        .and_then(|ports| ports.first())
        .expect("a port");
    let http = file.start.http.expect("an address").0;
    assert_eq!(i32::from(http.port()), port.container_port);
    assert!(
        !http.ip().is_loopback(),
        "the kubelet and Prometheus reach no loopback address"
    );
}

#[test]
fn profile_allows_what_the_engines_and_isolation_take() {
    let profile: Value = serde_json::from_str(&read("packaging/seccomp.json")).expect("JSON");
    // So that the C library takes the older call where it has one.
    assert_eq!(profile["defaultErrnoRet"], libc::ENOSYS);
    let [allowed] = &profile["syscalls"].as_array().expect("rules")[..] else {
        panic!("one rule");
    };
    let names: Vec<&str> = (allowed["names"].as_array().expect("names").iter())
        .filter_map(Value::as_str)
        .collect();
    assert!(names.is_sorted_by(|a, b| a < b), "sorted, each once");
    let taken = [
        "userfaultfd",
        "clone",
        "unshare",
        "fsopen",
        "fsconfig",
        "fsmount",
        "open_tree",
        "move_mount",
    ];
    for name in taken {
        assert!(names.contains(&name), "{name}");
    }
    let not_taken = [
        "bpf",
        "init_module",
        "kexec_load",
        "open_by_handle_at",
        "perf_event_open",
        "reboot",
    ];
    for name in not_taken {
        assert!(!names.contains(&name), "{name}");
    }
}

/// What `packaging/deb.sh` puts into the package, from where `Cargo.toml` says, without cargo-deb and without a build
/// for release.
#[test]
fn package_has_all_that_it_names() {
    let made = tempfile::tempdir().expect("a directory");
    let made = made.path().join("packaging");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = Command::new(root.join("packaging/made.sh"))
        .args([env!("CARGO_BIN_EXE_memvisor").as_ref(), made.as_os_str()])
        .output()
        .expect("bash");
    assert!(run.status.success(), "{run:?}");
    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().expect("a list");
    for asset in assets {
        let source = asset[0].as_str().expect("a path");
        let source = match source.strip_prefix("target/packaging/") {
            Some(inside) => made.join(inside),
            None if source == "target/release/memvisor" => continue,
            None => root.join(source),
        };
        let (dir, name) = (source.parent().expect("one"), source.file_name());
        let name = name.and_then(|name| name.to_str()).expect("UTF-8");
        let is_meant = |found: &str| match name.split_once('*') {
            Some((before, behind)) => found.starts_with(before) && found.ends_with(behind),
            None => found == name,
        };
        let files = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
        let files = files.map(|file| file.expect("readable"));
        let meant = files.filter(|file| is_meant(&file.file_name().to_string_lossy()));
        let sizes: Vec<_> = meant
            .map(|file| file.metadata().expect("readable").len())
            .collect();
        assert!(
            !sizes.is_empty() && !sizes.contains(&0),
            "{source:?}: {sizes:?}"
        );
    }
    assert!(assets.len() > 5, "only {assets:?} found");
    for key in ["maintainer-scripts", "license-file"] {
        let path = match &deb[key] {
            toml::Value::Array(parts) => parts[0].as_str(),
            path => path.as_str(),
        };
        assert!(root.join(path.expect("a path")).exists(), "{key}");
    }
}

/// Most scripts take root, a network and minutes, so they run seldom: a slip in one would be found late.
#[test]
fn scripts_can_be_parsed() {
    let mut found = 0;
    for dir in ["packaging", "packaging/debian", ".ci", "."] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        for file in fs::read_dir(&dir).expect("there") {
            let path = file.expect("readable").path();
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            let first = text.lines().next().unwrap_or_default();
            // `#!/bin/sh -e`, `#!/usr/bin/env bash`, or a word for shellcheck.
            let mut words = first.split(['/', ' ', '=']).skip(1);
            let shell = words.find(|word| ["bash", "sh"].contains(word));
            let Some(shell) = shell.filter(|_| first.starts_with('#')) else {
                continue;
            };
            let run = Command::new(shell).arg("-n").arg(&path).output();
            let run = run.expect(shell);
            assert!(run.status.success(), "{path:?}: {run:?}");
            found += 1;
        }
    }
    assert!(found > 5, "only {found} scripts found");
}
