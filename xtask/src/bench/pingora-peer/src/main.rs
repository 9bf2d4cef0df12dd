//! The smallest reverse proxy on the pingora crate: one worker thread, one upstream, nothing on the way.

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::configuration::{Opt, ServerConf};

struct One {
    upstream: String,
}

#[async_trait]
impl ProxyHttp for One {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&*self.upstream, false, String::new())))
    }
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let (Some(listen), Some(upstream)) = (words.next(), words.next()) else {
        eprintln!("usage: pingora-peer LISTEN UPSTREAM");
        std::process::exit(2);
    };
    let configuration = ServerConf { threads: 1, upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None::<Opt>, configuration);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, One { upstream });
    service.threads = Some(1);
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever()
}
