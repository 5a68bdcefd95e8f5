//! Does what docs/extending.md says: applies its diffs to a copy of the tree, builds the copy, runs the commands and
//! compares what they print. Without this, an example would be right on the day on which it was written.
//!
//! A block ```` ```diff NAME ```` of the document is an example; ```` ```console NAME ```` is how somebody sees the
//! example run. Each `$ command` there must print the lines below it, in this order, among others; `...` in a line
//! stands for any text. A command without lines must succeed; one that ends with ` &` runs until the block ends.

mod rig;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rig::Process;
use rig::console::{Shown, blocks, commands, prints};
use tempfile::TempDir;

const DOCUMENT: &str = include_str!("../docs/extending.md");

/// How long a command may take: most of it is the build of a copy that shares nothing but other people's crates.
const PATIENCE: Duration = Duration::from_secs(600);
/// For how long a command is repeated whose lines did not come, because the programs in the background may have just
/// begun.
const SETTLING: Duration = Duration::from_secs(20);

/// Unoptimised, because each line is compiled for a few seconds of use. That leaves the dependencies as they are.
const CONFIG: &str = "[net]\noffline = true\n[build]\nincremental = false\n\
    [profile.dev.package.memvisor]\nopt-level = 0\ndebug = false\n\
    [profile.dev.package.memvisor-guest-agent]\nopt-level = 0\ndebug = false\n\
    [profile.dev.package.memvisor-wire]\nopt-level = 0\ndebug = false\n";

/// A copy of the tree, and what is needed to build it.
struct Copy {
    dir: TempDir,
}

impl Copy {
    fn new() -> Self {
        // Beside the built crates, so that links to them are possible; elsewhere if that directory is not ours.
        let beside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let dir = beside.or_else(|_| tempfile::tempdir());
        let copy = Self {
            dir: dir.expect("a directory"),
        };
        let is_ours = |name: &str| !matches!(name, ".git" | "target");
        let place = |from: &Path, to: &Path| fs::copy(from, to).map(|_| ());
        copy_tree(
            Path::new(env!("CARGO_MANIFEST_DIR")),
            &copy.tree(),
            &is_ours,
            &place,
        );
        copy
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// Changes the tree by a diff, or changes it back.
    ///
    /// # Panics
    /// If the diff does not apply, to its last line.
    fn apply(&self, name: &str, diff: &str, back: bool) {
        let file = self.dir.path().join("diff");
        fs::write(&file, diff).expect("a file");
        let mut command = if has("git") {
            let mut git = Command::new("git");
            // The tree around the copy must not be taken for that of the diff.
            git.env("GIT_CEILING_DIRECTORIES", self.dir.path());
            git.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE");
            git.arg("apply");
            git
        } else {
            let mut patch = Command::new("patch");
            patch.args(["--strip=1", "--fuzz=0", "--batch"]);
            patch
        };
        let command = command
            .args(back.then_some("-R"))
            .stdin(File::open(&file).expect("it is there"));
        let output = command.current_dir(self.tree()).output();
        let output = output.expect("git or patch is installed");
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "the diff `{name}` of docs/extending.md does not apply:\n{said}"
        );
    }

    /// Brings the built crates of others into the copy's target directory.
    fn seed(&self) {
        let this = env::current_exe().expect("a path");
        let built = this.ancestors().nth(2).expect("target/PROFILE/deps/NAME");
        let profile = built.file_name().expect("a profile");
        let to = self.dir.path().join("target").join(profile);
        for part in [".fingerprint", "build", "deps"] {
            // Our own crates are built anew. What has no ending among the crates is a test, and large.
            let is_theirs =
                |name: &str| !name.contains("memvisor") && (part != "deps" || name.contains('.'));
            copy_tree(&built.join(part), &to.join(part), &is_theirs, &link);
        }
        fs::create_dir(self.dir.path().join(".cargo")).expect("a directory");
        fs::write(self.dir.path().join(".cargo/config.toml"), CONFIG).expect("a file");
    }
}

fn has(program: &str) -> bool {
    let asked = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

fn copy_tree(
    from: &Path,
    to: &Path,
    is_wanted: &dyn Fn(&str) -> bool,
    place: &dyn Fn(&Path, &Path) -> io::Result<()>,
) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{from:?}: {error}")) {
        let entry = entry.expect("a readable directory");
        let (name, kind) = (entry.file_name(), entry.file_type().expect("a type"));
        if !is_wanted(&name.to_string_lossy()) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        match kind.is_dir() {
            true => copy_tree(&from, &to, &|name| name != ".git", place),
            false => place(&from, &to).unwrap_or_else(|error| panic!("{from:?}: {error}")),
        }
    }
}

/// Makes a file the same as another, with its time, by which cargo sees that it is fresh. Compilers replace libraries
/// instead of writing into them, so a link does; cargo writes into its other files.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let ending = from.extension().and_then(|ending| ending.to_str());
    let is_library = matches!(ending, Some("rlib" | "rmeta" | "so"));
    if is_library && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to)?;
    File::open(to)?.set_modified(fs::metadata(from)?.modified()?)
}

/// Runs the commands of a block in the copy.
struct Session<'a> {
    copy: &'a Copy,
    name: &'a str,
    /// Where the output of processes is, and the sockets, whose paths must be short.
    scratch: TempDir,
    started: usize,
    running: Vec<Process>,
}

impl Session<'_> {
    fn start(&mut self, line: &str) -> Process {
        let target = self.copy.dir.path().join("target");
        let mut path = OsString::from(target.join("debug"));
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let outlives = line.starts_with("memvisor host") || line.starts_with("memvisor guest");
        // These would stay if the test were killed.
        let more = if outlives { " --die-with-parent" } else { "" };
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec {line}{more}")])
            .current_dir(self.copy.tree())
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", target)
            .env("CARGO_TERM_COLOR", "never")
            .env("MEMVISOR_RUNTIME_DIR", self.scratch.path().join("run"));
        self.started += 1;
        let name = format!("{}-{}", self.name, self.started);
        Process::start(command, &name, self.scratch.path())
    }

    fn run(&mut self, block: &str) {
        for Shown { line, wanted } in commands(block) {
            if let Some(line) = line.strip_suffix(" &") {
                let process = self.start(line);
                self.running.push(process);
                continue;
            }
            let begin = Instant::now();
            loop {
                let mut process = self.start(line);
                let succeeds = process.wait(PATIENCE).success();
                let output = process.stdout() + &process.stderr();
                let found = match wanted.is_empty() && !succeeds {
                    true => Err(format!("a failure:\n{output}")),
                    false => prints(&output, &wanted),
                };
                match found {
                    Ok(()) => break println!("{line}\n{output}"),
                    Err(_) if !self.running.is_empty() && begin.elapsed() < SETTLING => {}
                    Err(what) => panic!("{}: `{line}` printed {what}", self.name),
                }
            }
        }
        // The host last, because its guests end with it.
        self.running.reverse();
        self.running.clear();
    }
}

#[test]
fn each_diff_applies_to_the_tree_as_it_is() {
    let (copy, diffs) = (Copy::new(), blocks(DOCUMENT, "diff"));
    assert!(!diffs.is_empty(), "no diffs found: is the search right?");
    for (name, diff) in diffs {
        copy.apply(name, &diff, false);
        copy.apply(name, &diff, true);
    }
}

#[test]
fn commands_print_what_the_document_says() {
    if env::var_os("CARGO").is_none() {
        // Not by `eprintln`, which the harness keeps from whoever looks.
        let skipped = "SKIPPED: cargo did not start this test, so the examples were not built\n";
        io::stderr().write_all(skipped.as_bytes()).expect("written");
        return;
    }
    let copy = Copy::new();
    copy.seed();
    for (name, diff) in blocks(DOCUMENT, "diff") {
        copy.apply(name, &diff, false);
    }
    // With what `cargo test` has built others' crates for. With the tests of a file come the executables.
    let build =
        "$ cargo test -p memvisor -p memvisor-guest-agent --lib --test tidy --no-run\n".to_owned();
    for (name, block) in [("build", build)]
        .into_iter()
        .chain(blocks(DOCUMENT, "console"))
    {
        let begin = Instant::now();
        let scratch = tempfile::tempdir().expect("a directory");
        let mut session = Session {
            copy: &copy,
            name,
            scratch,
            started: 0,
            running: Vec::new(),
        };
        session.run(&block);
        println!("{name}: {:?}", begin.elapsed());
    }
}

#[test]
fn lines_match_with_gaps_and_in_order() {
    let output = "one 1\ntwo 22 of 3\nthree\n";
    assert_eq!(
        prints(output, &["one ...", "two ... of ...", "three"]),
        Ok(())
    );
    for wanted in [
        &["three", "one 1"][..],
        &["two ... 4"],
        &["tw"],
        &["two ... o"],
    ] {
        assert!(prints(output, wanted).is_err(), "{wanted:?}");
    }
}
