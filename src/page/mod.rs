//! Pages of guests: where each lives, who is moving it, who waits for it, what memory they cost.

mod budget;
mod history;
mod home;
mod parking;
mod table;

pub use budget::{Budget, Urgency};
pub use history::History;
pub use home::{Home, KIND_NAMES, KINDS};
pub use parking::Parking;
pub use table::{Due, Entry, KeptPage, PageGuard, PageTable};
