//! Changes of EndpointSlices alone: what [`State::update`] makes of them is what [`load`] makes of all files.

use proptest::collection::vec;
use proptest::prelude::*;

use super::file;
use crate::config::read::InputFile;
use crate::config::{State, load};

/// Slices, the first four in files of their own, of two services.
const SLICES: usize = 5;

/// What stands beside the slices: with pods, and with or without subsets.
fn others(subsets: bool, pods: usize) -> Vec<InputFile> {
    let service = |name: &str, ip: u8| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{ip}, ports: [{{name: http, \
             port: 80}}, {{name: dns, port: 53, protocol: UDP}}]}}\n"
        )
    };
    let pod = |number: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}, labels: {{version: v{}}}}}\nspec: {{nodeName: n{number}}}\n\
             status: {{podIP: 10.0.0.{number}}}\n",
            number % 2
        )
    };
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, subsets: \
                [{name: one, labels: {version: v1}}]}\n";
    let mut files = vec![file("Service/web", &service("web", 1)), file("Service/api", &service("api", 2))];
    files.extend((0..pods).map(|number| file(&format!("Pod/{number}"), &pod(number))));
    files.extend(subsets.then(|| file("DestinationRule/web", rule)));
    files
}

/// One version of a slice.
#[derive(Debug, Clone)]
struct Slice {
    which: usize,
    endpoints: Vec<(u8, bool, bool)>,
    form: u8,
}

impl Slice {
    /// The last one is given in the file of the first, too, under the same name as that.
    fn file(&self) -> InputFile {
        let path = format!("EndpointSlice/{}", self.which);
        let name = self.which % (SLICES - 1);
        let service = if name.is_multiple_of(2) { "web" } else { "api" };
        let (service, port) = match self.form {
            7 => ("gone", "http"),
            8 => (service, "other"),
            _ => (service, "http"),
        };
        let endpoint = |(number, ready, named): &(u8, bool, bool)| {
            let pod = if *named {
                format!(", targetRef: {{kind: Pod, name: pod-{number}}}")
            } else {
                String::new()
            };
            format!(
                "- {{addresses: [10.0.0.{number}], conditions: {{ready: {ready}, serving: true, terminating: {}}}{pod}}}\n",
                !ready
            )
        };
        let endpoints: String = self.endpoints.iter().map(endpoint).collect();
        let endpoints = if endpoints.is_empty() { "[]\n".to_owned() } else { format!("\n{endpoints}") };
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{name}, labels: \
             {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: {port}, port: 8080}}, \
             {{name: dns, port: 53, protocol: UDP}}]\nendpoints: {endpoints}"
        );
        let text = match self.form {
            9 => text.replace("addressType: IPv4", "addressType: banana"),
            10 => format!("{text}---\napiVersion: v1\nkind: Service\nmetadata: {{name: more}}\n"),
            11 => "a: [\n".to_owned(),
            12 => String::new(),
            _ => text,
        };
        file(&path, &text)
    }
}

fn slice() -> impl Strategy<Value = Slice> {
    // Pods by name nearly always: an address alone is what is not taken in here.
    let endpoint = (0u8..6, any::<bool>(), prop::bool::weighted(0.97));
    (0..SLICES, vec(endpoint, 0..5), 0u8..40).prop_map(|(which, endpoints, form)| Slice {
        which,
        endpoints,
        form,
    })
}

fn plain(which: usize) -> Slice {
    Slice { which, endpoints: vec![(1, true, true)], form: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn an_update_is_what_the_whole_is(
        changes in vec(vec(slice(), 1..3), 1..12),
        subsets in prop::bool::weighted(0.2),
        doubled in prop::bool::weighted(0.2),
        pods in 0usize..6,
    ) {
        let count = if doubled { SLICES } else { SLICES - 1 };
        let mut slices: Vec<Slice> = (0..count).map(plain).collect();
        let all = |slices: &[Slice]| {
            others(subsets, pods).into_iter().chain(slices.iter().map(Slice::file)).collect::<Vec<_>>()
        };
        let mut whole = load(&State::default(), all(&slices));
        let mut state = whole.clone();
        for change in changes {
            let changed: Vec<Slice> = change.into_iter().map(|one| Slice { which: one.which % count, ..one }).collect();
            for one in &changed {
                slices[one.which] = one.clone();
            }
            let files: Vec<InputFile> = changed.iter().map(Slice::file).collect();
            whole = load(&whole, all(&slices));
            let before = state.model.clone();
            if let Some(touched) = state.update(&files) {
                let of_others = |model: &crate::model::Model| -> Vec<_> {
                    let all = model.endpoints.iter().chain(model.datagram_endpoints.iter());
                    all.filter(|one| !touched.contains(&one.service)).cloned().collect()
                };
                prop_assert_eq!(of_others(&before), of_others(&state.model));
            } else {
                prop_assert_eq!(&before, &state.model);
                state = load(&state, all(&slices));
            }
            prop_assert_eq!(&state.model, &whole.model);
            prop_assert_eq!(&state.report, &whole.report);
        }
    }
}

#[test]
fn what_a_slice_says_of_its_endpoints_is_taken_in_and_nothing_else() {
    let all: Vec<InputFile> =
        others(false, 3).into_iter().chain((0..4).map(|which| plain(which).file())).collect();
    let check = |slice: Slice, taken: bool| {
        let mut state = load(&State::default(), all.clone());
        let touched = state.update(&[slice.file()]);
        assert_eq!(touched.is_some(), taken, "{slice:?}");
    };
    let with = |endpoints: &[(u8, bool, bool)], form| Slice { which: 0, endpoints: endpoints.to_vec(), form };
    check(with(&[(1, false, true)], 0), true);
    check(with(&[(1, true, true), (2, true, true)], 0), true);
    check(with(&[], 0), true);
    check(with(&[(1, true, false)], 0), false);
    for form in 7..=12 {
        check(with(&[(1, true, true)], form), false);
    }
    let mut state = load(&State::default(), others(true, 3).into_iter().chain(all.clone()).collect());
    assert_eq!(state.update(&[with(&[(2, true, true)], 0).file()]), None, "a subset may have lost its pods");
}
