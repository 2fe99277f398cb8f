//! Hostile clients on one core: from the beginning of counting to the end of the run.

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use glommio::timer::sleep;

use super::core::Task;
use super::{News, NewsSender, tls};
use crate::hostile::{self, Ground};
use crate::plan::{Plan, Tls, TlsMode};
use crate::schedule::Window;

/// Between two looks at whether it is time: how late the hostile clients may be, at their beginning and their end.
const TICK: Duration = Duration::from_millis(10);

/// Lets the hostile connections that fall to the `index`th of the cores that have some loose, and ends them.
pub async fn run(task: Task, index: usize, news: NewsSender) {
    let Some(client) = task.hostile_tls.clone() else { return };
    let Some(window) = wait_for_window(&task).await else { return };
    let ground = Rc::new(Ground::new(task.plan.clone(), client));
    let core_count = match task.plan.hostile_cores.len() {
        0 => task.plan.cores.len(),
        count => count,
    };
    let each = task.plan.hostile.iter();
    let connections = each.flat_map(|hostile| (0..hostile.connections).map(|n| (hostile.scenario, n)));
    let mut players = Vec::new();
    for (k, (scenario, n)) in connections.enumerate().filter(|(k, _)| k % core_count == index) {
        let source = match task.plan.hostile_sources.as_slice() {
            [] => None,
            sources => Some(sources[k % sources.len()]),
        };
        players.push(glommio::spawn_local(hostile::play(ground.clone(), scenario, n, source)));
    }
    while !is_over(&task, &window) {
        sleep(TICK).await;
    }
    for player in players {
        player.cancel().await;
    }
    // The watching thread has gone only where the run has failed, and says so itself.
    let _ = news.send(News::Hostile(ground.take_figures()));
}

/// Waits until counting is over: for a core that has nothing else to do.
pub async fn wait_for_end(task: &Task) {
    if let Some(window) = wait_for_window(task).await {
        while !is_over(task, &window) {
            sleep(TICK).await;
        }
    }
}

/// The window, once counting has begun; nothing if it does not come to that.
async fn wait_for_window(task: &Task) -> Option<Window> {
    loop {
        let window = task.control.begin.get().map(|begin| Window::new(&task.plan, *begin));
        match window {
            Some(window) if is_over(task, &window) => return None,
            Some(window) if Instant::now() >= window.from => return Some(window),
            None if task.control.is_stopped.load(Ordering::Relaxed) => return None,
            _ => sleep(TICK).await,
        }
    }
}

fn is_over(task: &Task, window: &Window) -> bool {
    task.control.is_stopped.load(Ordering::Relaxed)
        || task.control.loaded_cores.load(Ordering::Relaxed) == 0
        || window.until.is_some_and(|until| Instant::now() >= until)
}

/// TLS for hostile clients: as it is planned, but for resumption, because a flood of handshakes is one of full handshakes.
///
/// # Errors
/// A name that is none.
pub fn client(plan: &Plan) -> io::Result<tls::Client> {
    let planned = plan.tls.clone().unwrap_or_else(|| Tls {
        mode: TlsMode::StartTls,
        is_resuming: false,
        authorities: None,
        server_name: plan.target.address.ip().to_string(),
    });
    // Whether the server is who it says is nothing to a hostile client.
    tls::client_config(&Tls { is_resuming: false, authorities: None, ..planned })
}
