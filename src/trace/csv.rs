//! Page accesses as text: `time_us,vm,gfn` or `time_us,vm,gfn,write`, with a line of these names first.
//!
//! Times are microseconds, of any clock; gfns are decimal or, with `0x`, hexadecimal; `write` is 0 or 1. Lines need
//! not be in the order of time. An access says no more than that the page was used about then: whoever writes such a
//! list may leave out all but the first access to a page in each few milliseconds.

use std::collections::HashMap;
use std::io::{BufRead, ErrorKind};

use super::{Access, Accesses, ImportError};

/// How such a list begins.
pub const HEAD: &str = "time_us,vm,gfn";

/// Reads a list of accesses; `file` is its name, for errors.
///
/// # Errors
/// [`ImportError`] names the line.
pub fn read(file: &str, from: impl BufRead) -> Result<Accesses, ImportError> {
    let at = |line: u64, why: String| ImportError {
        file: file.to_owned(),
        place: line.to_string(),
        why,
    };
    let mut lines = (1..).zip(from.lines()).map(|(number, line)| {
        let line = line.map_err(|error| match error.kind() {
            ErrorKind::InvalidData => at(number, "this is no text in UTF-8".to_owned()),
            _ => at(number, format!("it cannot be read: {error}")),
        });
        line.map(|line| (number, line))
    });
    let head = lines
        .next()
        .transpose()?
        .map_or(String::new(), |(_, line)| line);
    let columns: Vec<&str> = words(&head).collect();
    if columns != ["time_us", "vm", "gfn"] && columns != ["time_us", "vm", "gfn", "write"] {
        let why = format!(
            "`{}` where `{HEAD}` or `{HEAD},write` is expected",
            head.trim()
        );
        return Err(at(1, why));
    }
    let mut list = Accesses::default();
    let mut known = HashMap::new();
    for line in lines {
        let (number, line) = line?;
        if !line.trim().is_empty() {
            let access = access(&line, columns.len(), &mut list.vms, &mut known);
            list.accesses.push(access.map_err(|why| at(number, why))?);
        }
    }
    list.accesses.sort_by_key(|access| access.at_us);
    Ok(list)
}

/// The values of a line. Some programs put them in quotes.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(|word| word.trim().trim_matches('"'))
}

fn access(
    line: &str,
    columns: usize,
    vms: &mut Vec<String>,
    known: &mut HashMap<String, u32>,
) -> Result<Access, String> {
    let count = line.split(',').count();
    if count != columns {
        return Err(format!("{count} values where {columns} are expected"));
    }
    let mut words = words(line);
    let mut word = || words.next().unwrap_or_default();
    let (at_us, name, gfn, write) = (word(), word(), word(), word());
    if name.is_empty() {
        return Err("the name of the VM is empty".to_owned());
    }
    Ok(Access {
        at_us: at_us
            .parse()
            .map_err(|_| format!("`{at_us}` is no time in whole microseconds"))?,
        vm: match known.get(name) {
            Some(vm) => *vm,
            None => {
                let vm = u32::try_from(vms.len()).map_err(|_| "too many VMs".to_owned())?;
                vms.push(name.to_owned());
                known.insert(name.to_owned(), vm);
                vm
            }
        },
        gfn: number(gfn).ok_or_else(|| {
            format!("`{gfn}` is no page number: 0 to 4294967294, or with 0x in hexadecimal")
        })?,
        write: match write {
            "" | "0" => false,
            "1" => true,
            other => return Err(format!("`{other}` where write is 0 or 1")),
        },
    })
}

/// The last number is left out: it would make a VM of more pages than can be counted.
fn number(text: &str) -> Option<u32> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.ok().filter(|gfn| *gfn < u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_read_and_put_in_order() {
        let text = "time_us,vm,gfn,write\n20,b,0x10,1\n\n10,\"a\",3,0\n20,a,4,\n";
        let list = read("x.csv", text.as_bytes()).expect("right");
        assert_eq!(list.vms, ["b", "a"]);
        let of = |at_us, vm, gfn, write| Access {
            at_us,
            vm,
            gfn,
            write,
        };
        let expected = [
            of(10, 1, 3, false),
            of(20, 0, 16, true),
            of(20, 1, 4, false),
        ];
        assert_eq!(list.accesses, expected);
        let without = read("x.csv", "time_us, vm, gfn\r\n1,a,2\r\n".as_bytes()).expect("right");
        assert_eq!(without.accesses, [of(1, 0, 2, false)]);
    }

    #[test]
    fn errors_name_file_line_and_value() {
        for (text, said) in [
            ("", "x.csv:1: `` where `time_us,vm,gfn`"),
            ("vm,gfn\n", "x.csv:1: `vm,gfn` where"),
            ("time_us,vm,gfn\n1,a,2\n1,a\n", "x.csv:3: 2 values where 3"),
            ("time_us,vm,gfn\n1.5,a,2\n", "x.csv:2: `1.5` is no time"),
            (
                "time_us,vm,gfn\n\n1,a,-2\n",
                "x.csv:3: `-2` is no page number",
            ),
            (
                "time_us,vm,gfn\n1,a,4294967295\n",
                "x.csv:2: `4294967295` is no page",
            ),
            ("time_us,vm,gfn\n1,,2\n", "x.csv:2: the name"),
            (
                "time_us,vm,gfn,write\n1,a,2,yes\n",
                "x.csv:2: `yes` where write",
            ),
        ] {
            let error = read("x.csv", text.as_bytes()).expect_err(text).to_string();
            assert!(error.starts_with(said), "{error}");
        }
        let error = read("x.csv", &b"time_us,vm,gfn\n1,\xff,2\n"[..]).expect_err("no text");
        assert!(error.to_string().starts_with("x.csv:2: "), "{error}");
    }
}
