//! What processes share: all limits of a call or none, by key, and no state that stays.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{borrow::Cow, collections::HashMap, time::Duration};

use crate::shared::support::{
    Mode, Prompt, Setup, admits, call, eventually, exactly_left, requests_left, unary,
};
use tokio::task::JoinSet;
use tower_llm_core::{Call, Caller, Described, Key, KeyBy, Operation, Provider, Unary};
use tower_llm_ratelimit::{ExceedsLimit, Limit, RateLimitBuilder, RateLimitLayer};

scenarios!(
    two_racing_layers_charge_all_limits_of_a_call_or_none,
    a_refused_call_leaves_no_trace,
    layers_with_other_names_do_not_share,
    similar_keys_are_kept_apart,
    two_closures_with_the_same_key_count_separately,
    tiers_have_different_amounts_of_one_count,
    every_key_expires_soon_after_it_stops_counting,
);

fn by_caller_and_model(tokens: u64) -> RateLimitBuilder {
    RateLimitLayer::for_callers()
        .limit(Limit::tokens(tokens).per_hour())
        .limit(Limit::tokens(tokens).per_hour().by(KeyBy::model()))
        .limit(Limit::input_tokens(tokens).per_hour().by(KeyBy::model()))
}

/// A layer with its own client.
async fn layer(setup: &Setup, builder: RateLimitBuilder) -> RateLimitLayer<Unary> {
    let redis = setup.redis().await;
    unary(builder, setup.shared(&redis, 2))
}

fn prompt(caller: &str, model: &str, tokens: u64) -> Prompt {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .model(model)
        .caller(Caller::named(caller))
        .input_tokens(tokens)
        .max_output_tokens(0);
    Prompt(call.build())
}

async fn two_racing_layers_charge_all_limits_of_a_call_or_none(setup: &mut Setup) {
    const LIMIT: u64 = 300;
    let layers = [
        layer(setup, by_caller_and_model(LIMIT)).await,
        layer(setup, by_caller_and_model(LIMIT)).await,
    ];
    let mut tasks = JoinSet::new();
    for task in 0..32_u64 {
        let layer = layers[usize::from(task % 2 == 0)].clone();
        tasks.spawn(async move {
            let mut admitted = Vec::new();
            for round in 0..20 {
                let dice = task * 7 + round * 13;
                let (caller, model) = (dice % 5, dice / 5 % 4);
                let tokens = 1 + dice % 9;
                let (caller, model) = (format!("caller {caller}"), format!("model {model}"));
                if admits(&layer, prompt(&caller, &model, tokens)).await {
                    admitted.extend([(caller, tokens), (model, tokens)]);
                }
            }
            admitted
        });
    }
    let mut taken: HashMap<String, u64> = HashMap::new();
    for (key, tokens) in tasks.join_all().await.into_iter().flatten() {
        *taken.entry(key).or_default() += tokens;
    }
    println!("{taken:?}");
    assert!(taken.values().all(|&tokens| tokens <= LIMIT), "{taken:?}");
    assert!(taken.values().sum::<u64>() > 4 * LIMIT, "{taken:?}");

    // What is left of each key is what its admitted calls did not use: refused calls used nothing.
    let callers = RateLimitLayer::for_callers().limit(Limit::tokens(LIMIT).per_hour());
    let callers = layer(setup, callers).await;
    let models = RateLimitLayer::for_callers().key_by(KeyBy::model());
    let models = layer(setup, models.limit(Limit::tokens(LIMIT).per_hour())).await;
    for (key, tokens) in taken {
        let prompt = |tokens| prompt(&key, &key, tokens);
        let layer = if key.starts_with("caller") {
            &callers
        } else {
            &models
        };
        let left = LIMIT - tokens;
        if left > 0 {
            let what = format!("{left} are left for {key}");
            eventually(&what, async || admits(layer, prompt(left)).await).await;
        }
        assert!(
            !admits(layer, prompt(1)).await,
            "more than {left} for {key}"
        );
    }
}

async fn a_refused_call_leaves_no_trace(setup: &mut Setup) {
    let limits = || {
        RateLimitLayer::for_callers()
            .limit(Limit::tokens(100).per_hour())
            .limit(Limit::requests(40).per_hour().by(KeyBy::shared()))
    };
    let layers = [layer(setup, limits()).await, layer(setup, limits()).await];
    eventually("all requests are used", async || {
        !admits(&layers[0], Prompt::by("first", 0)).await
    })
    .await;
    for _ in 0..50 {
        for layer in &layers {
            assert!(!admits(layer, Prompt::by("second", 10)).await);
        }
    }
    assert_eq!(setup.keys("second").await, [""; 0]);
    let callers = RateLimitLayer::for_callers().limit(Limit::tokens(100).per_hour());
    exactly_left(&layer(setup, callers).await, "second", 100).await;
}

async fn layers_with_other_names_do_not_share(setup: &mut Setup) {
    let redis = setup.redis().await;
    let named = |name: String| {
        let limit = RateLimitLayer::for_callers().limit(Limit::tokens(100).per_hour());
        unary(limit, setup.mode.shared(&redis, &name, 2))
    };
    let names = ["", ":", ":limit", " b", "/", "ü", "\n", "*"];
    let names = names.map(|end| format!("{}{end}", setup.name));
    let layers = names.clone().map(named);
    for layer in &layers {
        exactly_left(layer, "somebody", 100).await;
    }
    for name in names {
        // The lease that the other layer of this name got first is spent.
        assert!(!admits(&named(name), Prompt::of(1)).await);
    }
}

async fn similar_keys_are_kept_apart(setup: &mut Setup) {
    let limits = || {
        RateLimitLayer::for_providers()
            .max_waiting(0)
            .key_by(KeyBy::custom(|request| {
                let call = request.call().unwrap();
                Key::pair(call.caller().unwrap().as_str(), call.model().unwrap())
            }))
            .limit(Limit::tokens(100).per_hour())
    };
    let (one, other) = (layer(setup, limits()).await, layer(setup, limits()).await);
    let keys = [
        ("", ""),
        ("a", ""),
        ("", "a"),
        ("a", "b"),
        ("a:b", ""),
        ("", "a:b"),
        ("a:", "b"),
        ("a", ":b"),
        ("a", "b:holds"),
        ("a", "b:holds:holds"),
        ("a:holds", "b"),
        ("overflow", ""),
        ("1:a", "b"),
        ("{a}", "b"),
        ("}{", "}"),
        ("{", "{}"),
        ("a b", "c/d"),
        ("a/b", "c d"),
        ("ä", "ö ü"),
        ("模型", "🦀"),
        ("\r\n", "\0"),
        ("*", "?"),
    ];
    // Reserved and settled: each key has both of its kinds in the store.
    for (first, second) in keys {
        let admitted = call(&one, prompt(first, second, 60)).await;
        assert!(admitted.is_ok(), "{first:?}, {second:?}: {admitted:?}");
    }
    for (first, second) in keys {
        let what = format!("40 are left for {first:?}, {second:?}");
        let prompt = |tokens| prompt(first, second, tokens);
        eventually(&what, async || admits(&other, prompt(40)).await).await;
        assert!(!admits(&other, prompt(1)).await, "more than {what}");
    }
}

async fn two_closures_with_the_same_key_count_separately(setup: &mut Setup) {
    let builder = || {
        let callers =
            KeyBy::custom(|request| Key::new(request.call().unwrap().caller().unwrap().as_str()));
        RateLimitLayer::for_callers()
            .limit(
                Limit::tokens(1_000)
                    .per_hour()
                    .by(KeyBy::custom(|_| Key::new("acme"))),
            )
            .limit(Limit::tokens(100).per_hour().by(callers))
    };
    let (one, other) = (layer(setup, builder()).await, layer(setup, builder()).await);
    assert!(admits(&one, Prompt::by("somebody", 60)).await);
    // The key that all callers share has the same name.
    exactly_left(&other, "acme", 100).await;
    exactly_left(&other, "somebody", 40).await;
}

async fn tiers_have_different_amounts_of_one_count(setup: &mut Setup) {
    let tiers = || {
        let limit = Limit::tokens(100).per_hour();
        RateLimitLayer::for_callers()
            .limit(limit.tier("pro", 200).tier("enterprise", 1_000))
            .tier_by(|request| tier(request))
    };
    let (one, other) = (layer(setup, tiers()).await, layer(setup, tiers()).await);
    for (caller, amount) in [("free", 100), ("pro", 200), ("enterprise", 1_000)] {
        let error = call(&other, Prompt::by(caller, amount + 1)).await;
        let error = error.unwrap_err();
        let error = error.downcast_ref::<ExceedsLimit>().unwrap();
        assert_eq!(error.capacity(), amount);
        assert!(admits(&one, Prompt::by(caller, 60)).await);
        exactly_left(&other, caller, amount - 60).await;
    }
    // A caller that moves up gets the difference; one that moves down has used more than its limit.
    one.handle().set_tier_by(|_| Cow::Borrowed("enterprise"));
    exactly_left(&one, "pro", 800).await;
    assert!(!admits(&other, Prompt::by("pro", 1)).await);
}

fn tier(request: &dyn Described) -> Cow<'static, str> {
    let call = request.call().unwrap();
    Cow::Owned(call.caller().unwrap().as_str().to_owned())
}

async fn every_key_expires_soon_after_it_stops_counting(setup: &mut Setup) {
    let second = Duration::from_secs(1);
    let builder = RateLimitLayer::for_callers()
        .limit(Limit::tokens(1_000).per(second))
        .limit(Limit::requests(100).per(second).by(KeyBy::model()))
        .limit(Limit::tokens(1_000).per(second).bucket(500))
        .limit(Limit::tokens(9_000).per_day_in("UTC").by(KeyBy::account()));
    let redis = setup.redis().await;
    let layer = unary(builder, setup.shared(&redis, 2).hold_for(second));
    for caller in 0..20 {
        let caller = format!("caller {caller}");
        assert!(admits(&layer, Prompt::by(&caller, 40)).await);
    }
    // A call that is never settled.
    let waits = tokio::time::timeout(
        Duration::from_millis(300),
        crate::shared::support::stuck(&layer, Prompt::by("stuck", 40)),
    );
    assert!(waits.await.is_err());
    let keys = setup.keys("").await;
    assert!(keys.len() >= 20, "{keys:?}");
    for key in keys {
        let lives: i64 = setup.command(&["PTTL", &key]).await.parse().unwrap();
        // -2: the key is gone meanwhile.
        assert_ne!(lives, -1, "{key} never expires");
        let longest = if key.contains("UTC") {
            86_402_000
        } else {
            3_500
        };
        assert!(lives <= longest, "{key} lives for {lives} ms");
    }
    drop(layer);
    let took = eventually("only the day is left", async || {
        let keys = setup.keys("").await;
        keys.iter().all(|key| key.contains("UTC"))
    })
    .await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn request_limits_alone_are_shared_too() {
    for mode in Mode::ALL {
        let setup = Setup::server(mode, "requests").await;
        let builder = || RateLimitLayer::for_callers().limit(Limit::requests(50).per_hour());
        let (one, other) = (
            layer(&setup, builder()).await,
            layer(&setup, builder()).await,
        );
        for _ in 0..20 {
            assert!(admits(&one, Prompt::of(0)).await);
        }
        let mut left = 0;
        eventually("all are used", async || {
            left += requests_left(&other).await;
            left >= 30
        })
        .await;
        assert_eq!(left, 30);
    }
}
