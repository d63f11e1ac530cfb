//! Panics in a technique: caught, and told with their place.
//!
//! Contract
//! - A thread that calls [`guard`] promises that its panics are caught or joined by somebody who reports them.
//!   Its panics print nothing; message and place go into the book.
//! - All other panics go to the hook that was there before, and under MPI end the job (`transport::mpi`).

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// Where guarded threads note their panics. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<Mutex<VecDeque<(String, String)>>>);

/// Notes of panics nobody asked about are dropped beyond this.
const PAGES: usize = 16;

thread_local! {
    static BOOK: RefCell<Option<Book>> = const { RefCell::new(None) };
}

/// From now on this thread's panics are noted in `book` instead of printed.
pub fn guard(book: &Book) {
    install();
    BOOK.with(|slot| *slot.borrow_mut() = Some(book.clone()));
}

/// True on threads that called [`guard`].
pub fn is_guarded() -> bool {
    BOOK.try_with(|slot| slot.try_borrow().is_ok_and(|b| b.is_some())).unwrap_or(false)
}

/// Runs `f` on a guarded thread; a panic becomes text: what was said, and where.
pub fn catch<R>(book: &Book, f: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let said = message(payload.as_ref());
        match book.place_of(&said) {
            Some(place) => format!("panic at {place}: {said}"),
            None => format!("panic: {said}"),
        }
    })
}

impl Book {
    fn note(&self, info: &PanicHookInfo<'_>) {
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() == PAGES {
            pages.pop_front();
        }
        pages.push_back((message(info.payload()), place));
    }

    /// Phases overlap, so two panics may be in the book: the message tells which is meant.
    fn place_of(&self, said: &str) -> Option<String> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let i = pages.iter().rposition(|(text, _)| text == said)?;
        pages.remove(i).map(|(_, place)| place)
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A thread that panics while it is being torn down has no book any more.
            let book = BOOK.try_with(|slot| slot.try_borrow().ok().and_then(|b| b.clone())).ok().flatten();
            match book {
                Some(book) => book.note(info),
                None => before(info),
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_tells_what_and_where() {
        let text = std::thread::spawn(|| {
            let book = Book::default();
            guard(&book);
            catch(&book, || panic!("angle {} is missing", 7)).unwrap_err()
        })
        .join()
        .unwrap();
        assert!(text.contains("angle 7 is missing") && text.contains("panics.rs:"), "{text}");
        assert!(!is_guarded());
    }
}
