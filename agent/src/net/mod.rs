//! Sockets: how connections are dialled and accepted, what protocol they speak, and how bytes are moved.

mod bridge;
mod connect;
mod copy;
mod detect;
mod linger;
mod listen;
mod read_ahead;
mod replay;
mod stream;
mod tcp_info;
mod tls;

pub use bridge::{Bridge, Bridges, Bridging, Declared, Leg, Way};
pub use connect::{
    ConnectSource, ConnectTarget, Connector, Line, PlainConnector, SharedStream, finish_connect, keepalive,
};
pub use copy::{RelayFailure, Relayed, relay, relay_bridged, relay_stream};
pub use detect::{HTTP2_FRAME_HEAD, Spoken, classify, is_http2_settings};
pub use linger::{linger, linger_refused};
pub use listen::{ensure_free, gateway_listener, lacks_ipv6, server_listener};
pub use read_ahead::ReadAhead;
pub use replay::Replay;
pub use stream::{ReadHalf, Stream, WriteHalf};
pub use tcp_info::{TcpInfo, has_waiting, is_connected, read_tcp_info, tcp_info};
pub use tls::{PeerAlert, TlsIo, read_hello};
