//! How the DNS is asked, by whoever asks it.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{ResolverBuilder, TokioResolver};

/// How often a question is sent within its time, where no answer comes: a datagram may be lost.
const TRIES: u32 = 2;

/// Asks `servers`, or those of `/etc/resolv.conf` where there are none; of several the two quickest at the same time. A question may take
/// `timeout`. Errors are in words for the operator.
pub fn resolver(
    servers: &[SocketAddr],
    timeout: Duration,
) -> Result<ResolverBuilder<TokioRuntimeProvider>, String> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio().map_err(|e| format!("cannot use /etc/resolv.conf: {e}"))?,
        _ => {
            let servers = servers.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|way| way.port = server.port());
                config
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.timeout = timeout / TRIES;
    options.attempts = TRIES as usize - 1;
    // A file of this machine says nothing about the names of others.
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = false;
    options.edns0 = true;
    Ok(builder)
}
