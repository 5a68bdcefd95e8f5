//! Runs what a document shows of a terminal.
//!
//! Each block whose fence says `console NAME` has a directory of its own, with the documents and nothing else, and a host
//! of its own if it starts one. A command that ends with ` &` runs until its block ends, or until `kill %N` ends the Nth
//! of them, as in a shell.

use std::path::Path;
use std::process::Command;

use super::console::{Shown, blocks, commands, prints};
use super::{PATIENCE, Process, eventually, scratch};

/// Runs all blocks of a document, of which there must be at least so many.
///
/// # Panics
/// If a command does not print what the document says.
#[track_caller]
pub(crate) fn runs(document: &str, least: usize) {
    let blocks = blocks(document, "console");
    assert!(
        blocks.len() >= least,
        "only {}: is the search right?",
        blocks.len()
    );
    for (name, block) in blocks {
        let dir = scratch();
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        std::os::unix::fs::symlink(docs, dir.path().join("docs")).expect("our own directory");
        run(name, &block, dir.path());
    }
}

fn run(name: &str, block: &str, dir: &Path) {
    let mut running: Vec<Option<Process>> = Vec::new();
    for Shown { line, wanted } in commands(block) {
        if let Some(line) = line.strip_suffix(" &") {
            running.push(Some(shell(&format!("{line} --die-with-parent"), dir)));
            continue;
        }
        if let Some(which) = line.strip_prefix("kill %") {
            let which: usize = which.parse().expect("a number");
            let ended = running.get_mut(which - 1).and_then(Option::take);
            let mut ended = ended.expect("it runs");
            ended.terminate();
            ended.wait(PATIENCE);
            continue;
        }
        let try_once = || {
            let mut process = shell(line, dir);
            let succeeds = process.wait(PATIENCE).success();
            let output = process.stdout() + &process.stderr();
            // Where it prints nothing that matters, it must succeed.
            match wanted.is_empty() && !succeeds {
                true => Err(output),
                false => prints(&output, &wanted),
            }
        };
        if running.iter().all(Option::is_none) {
            try_once().unwrap_or_else(|what| panic!("{name}: `{line}` printed {what}"));
        } else {
            // The programs in the background may have just begun.
            eventually(line, PATIENCE, || try_once().ok());
        }
    }
    // The host last, because its guests end with it.
    while running.pop().is_some() {}
}

/// Runs a line of a document in `dir`.
fn shell(line: &str, dir: &Path) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_memvisor"));
    let mut path = program
        .parent()
        .expect("a directory")
        .as_os_str()
        .to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec {line}")])
        .current_dir(dir);
    command
        .env("PATH", path)
        .env("MEMVISOR_RUNTIME_DIR", dir.join("run"));
    Process::start(command, "line", dir)
}
