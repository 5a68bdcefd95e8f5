//! Pages of guests: where each page lives, who is moving it, who waits for it, and what memory the pages cost.

mod budget;
mod claims;
mod history;
mod home;
mod parking;
mod queue;
mod table;
mod witness;

pub use budget::{Budget, Urgency};
pub use claims::Claims;
pub use history::History;
pub use home::{Home, KINDS};
pub use parking::Parking;
pub use queue::Need;
pub use table::{Attempt, DonePage, Due, Entry, KeptPage, Moved, PageGuard, PageTable, Standing};
pub use witness::Witness;
