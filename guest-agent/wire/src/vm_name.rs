//! Names of VMs: they become path segments of URLs, file names and columns of a table.

use thiserror::Error;

/// The most characters of a VM's name; ESX allows 80, a table of 80 columns makes 63 sensible.
pub const NAME_MAX: usize = 63;

/// Why a text cannot be the name of a VM.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a VM name: use 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, and begin with \
     a letter or digit"
)]
pub struct NameError(String);

/// Checks that `name` can be the name of a VM.
///
/// # Errors
/// [`NameError`] that says what a name looks like.
pub fn check_vm_name(name: &str) -> Result<(), NameError> {
    // A leading dot would hide its files, a leading dash look like an option.
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let all_allowed = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if begins_well && all_allowed && name.len() <= NAME_MAX {
        return Ok(());
    }
    // The refused text may be anything, but an error message must stay one readable line.
    Err(NameError(name.escape_debug().take(2 * NAME_MAX).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_letters_digits_and_marks_is_taken() {
        for name in ["a", "vm1", "7", "db-primary_2.lab", &"x".repeat(NAME_MAX)] {
            assert_eq!(check_vm_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn name_that_would_change_a_path_or_a_terminal_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a?b",
            "-x",
            "a b",
            "é",
            "a\u{1b}[2J",
            &"x".repeat(64),
        ] {
            let error = check_vm_name(name).expect_err(name);
            assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
        }
    }
}
