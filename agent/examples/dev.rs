use agent::*;
use std::sync::Arc; use std::rc::Rc;
use model::*;
struct R;
impl telemetry::Recorder for R {
 fn request(&self, r:&telemetry::RequestRecord<'_>){ println!("{r:?}"); }
 fn connection_opened(&self, _r:&telemetry::ConnectionRecord<'_>){}
 fn connection(&self, r:&telemetry::ConnectionRecord<'_>){ println!("{r:?}"); }
 fn downstream(&self,_:&telemetry::Origin,_:bool){}
}
#[tokio::main]
async fn main(){
 tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
 let name=ObjectName::new("default","web");
 let ep=|a:&str| Endpoint{service:name.clone(),service_port:80,address:a.parse().unwrap(),ready:true,pod:None,uid:a.into(),node:None,labels:Arc::default()};
 let m=Model{services:vec![Service{name:name.clone(),cluster_ips:vec!["10.96.0.1".parse().unwrap(),"fd00:96::1".parse().unwrap()],headless:false,ports:vec![ServicePort{name:"".into(),port:80,protocol:AppProtocol::Tcp}]}],endpoints:vec![ep("10.10.2.2:80"),ep("[fd00:10:2::2]:80")],..Default::default()};
 let t=Arc::new(compile::compile(&m,&Default::default(),Default::default()));
 println!("{:?}", t.frontends.keys().collect::<Vec<_>>());
 let tables=Arc::new(arc_swap::ArcSwap::from(t.clone()));
 let marks=capture::Marks::default();
 let ls:Vec<_>=(0..2).map(|i| capture::CaptureListeners::bind(if i==0{15001}else{0},marks.own).unwrap()).collect();
 let local:capture::LocalAddresses=Arc::new(arc_swap::ArcSwap::from_pointee(vec![]));
 let (_tx,rx)=tokio::sync::watch::channel(t);
 let (_d,drain)=tokio::sync::watch::channel(false);
 let mut hs=vec![];
 for i in 0..2usize { let l=local.clone(); let h=proxy::start_worker(proxy::WorkerSettings{index:i,tables:tables.clone(),drain:drain.clone(),open:Arc::default(),connector:Box::new(move|| Rc::new(capture::SpoofingConnector::new(marks.own,l,0))),recorder:Box::new(||Rc::new(R)),seed:i as u64}).unwrap();
  for s in &ls[i].sockets { h.commands.send(proxy::Command::Capture(s.try_clone().unwrap().into())).unwrap(); } hs.push(h);}
 let st=capture::CaptureSettings{pod_interfaces:"pod*".parse().unwrap(),uplinks:vec![],marks,workers:2};
 for c in capture::checks(&st).await { println!("{c:?}"); }
 let (e,h)=match capture::Engine::start(st,&ls,local,rx).await { Ok(x)=>x, Err(e)=>{println!("ERR {e}"); std::process::exit(1)}};
 let status=h.status();
 println!("{:?}", *status.borrow());
 let task=tokio::spawn(e.run());
 tokio::signal::ctrl_c().await.unwrap();
 println!("{:?}", *status.borrow());
 h.stop_capturing().await; task.await.unwrap().remove().await;
}
