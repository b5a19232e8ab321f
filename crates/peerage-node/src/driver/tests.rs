//! What the program around the node asks of it, and in which order.

use peerage_proto::node::{Failure, Route, Way};
use peerage_proto::session;
use peerage_wire::codec::{Protocol, Service};
use peerage_wire::id::Domain;
use peerage_wire::keys::IdentityKey;

use super::*;
use crate::link::LinkConfig;
use crate::tls::Tls;
use crate::tunnel::forward::{Dialer, ForwardError};

/// The link breaks, an application connects, and the node hears of both in the other order: whoever is asked to dial blindly waits ten seconds
/// for a tunnel-node that is dead.
#[tokio::test]
async fn a_way_over_a_link_that_has_gone_is_asked_for_again_once_the_node_knows_that() {
    let (own, other) = (IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32]));
    let session = session::Config { max_window: session::WINDOW_MAX, budget: session::Budget::new(1 << 20) };
    let config = LinkConfig {
        local: own.node_id(Domain(1)),
        tls: Tls::new(&own).unwrap(),
        session,
        clock: Clock::new(),
        connector: Connector::default(),
    };
    let (links, _events) = Links::new(config);
    let (legs, _news) = OwnLegs::new(Connector::default());
    let (node, mut requests) = NodeHandle::new();
    let dialer = Dialer::new(node, (links, legs), Tunnels::default());
    let peer = other.node_id(Domain(1));
    let way = Way::Tunnel { peer, identity: other.public(), candidates: vec![], relayed: None, begun: None };
    let service = Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: false };
    let (device, name) = (DeviceId([3; 32]), "printer".to_owned());
    let over_link = Route { device, name, service, pins: vec![], way };
    let answering = async {
        let Some(Request::Command(Command::Route { .. }, answer)) = requests.0.recv().await else { panic!() };
        answer.send(Answer::Route(Box::new(over_link))).unwrap();
        let Some(Request::Tell(Input::LinkDown(down))) = requests.0.recv().await else { panic!() };
        let Some(Request::Command(Command::Route { .. }, answer)) = requests.0.recv().await else { panic!() };
        answer.send(Answer::Failed(Failure::TunnelNodesSilent)).unwrap();
        down
    };
    let (reached, down) = tokio::join!(dialer.reach("printer", Some("ipp")), answering);
    assert!(matches!(reached, Err(ForwardError::NoWay(Failure::TunnelNodesSilent))), "{reached:?}");
    assert_eq!(down, peer);
}
