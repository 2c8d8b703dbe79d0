//! A bar for bytes on their way, on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Call;
use crate::storage::Meter;

/// What goes faster than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Waits for something that moves `size` bytes, and shows how far it is. A size of 0 is not known yet: the
/// storage says it with its answer.
pub(super) async fn with_bar<T>(
    what: &str,
    size: u64,
    meter: &Meter,
    work: impl Future<Output = T>,
    call: &Call,
) -> T {
    if !call.output.is_terminal() {
        return work.await;
    }
    let draw = async {
        call.clock.sleep(PATIENCE).await;
        let bar = ProgressBar::new(size).with_message(what.to_owned());
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        let bar = Cleared(bar);
        loop {
            let size = meter.expected().filter(|_| size == 0).unwrap_or(size);
            bar.0.set_length(size);
            bar.0.set_position(meter.moved().min(size));
            call.clock.sleep(TICK).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = draw => unreachable!("a bar is drawn until the work is done"),
    }
}

/// Takes the bar away, however the work ends.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
