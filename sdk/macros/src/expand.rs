//! Writes the code of a checked task, flow or shape.
//!
//! A function `fetch` becomes a builder of that name and, in the namespace of types, a struct of that
//! name whose functions are `fetch::map` and `fetch::run`. Author's tokens keep their places, so that what
//! the compiler says about them points there.

use crate::ast::{Content, Returns, Shape};
use crate::valid::{Amount, Cache, Clock, Filter, Flow, Retries, Rule, Schedule, Task, Trigger};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;

/// The builder, `map`, `run`, and what a host is told about the task.
pub(crate) fn task(checked: &Task) -> TokenStream {
    let task = &checked.task;
    let name = &task.name;
    let visibility = &task.visibility;
    let configured: Vec<_> = task
        .attributes
        .iter()
        .filter(|a| a.path().is_ident("cfg"))
        .collect();
    let attributes: Vec<_> = task
        .attributes
        .iter()
        .filter(|a| !a.path().is_ident("cfg"))
        .collect();
    let description = &task.description;
    let body = &task.body;

    let arguments: Vec<&Ident> = task
        .arguments
        .iter()
        .map(|argument| &argument.name)
        .collect();
    let inputs: Vec<String> = arguments
        .iter()
        .map(|argument| argument.unraw().to_string())
        .collect();
    let types: Vec<_> = task.arguments.iter().map(|argument| &argument.of).collect();
    let parameters = task.arguments.iter().map(|argument| {
        let (name, of) = (&argument.name, &argument.of);
        let is_mut = argument.is_mut.then(|| quote!(mut));
        quote!(#is_mut #name: #of)
    });
    let (returns, output, outcome) = match &task.returns {
        Returns::Nothing => (quote!(), quote!(()), quote!(plain)),
        Returns::Plain(of) => (quote!(-> #of), quote!(#of), quote!(plain)),
        Returns::Result(of, held) => (quote!(-> #of), quote!(#held), quote!(Outcome::outcome)),
    };
    let takes = arguments.iter().zip(&inputs).zip(&types).map(|((argument, input), of)| {
        quote_spanned!(of.span()=> let #argument = __inputs.take::<#of>(#input)?;)
    });
    let ends = match &task.returns {
        Returns::Plain(of) | Returns::Result(of, _) => of.span(),
        Returns::Nothing => Span::call_site(),
    };
    let ends = quote_spanned!(ends=> ::waft_sdk::__private::#outcome(Self::run(#(#arguments),*)));
    let probe = match &task.returns {
        Returns::Plain(of) => Some(quote_spanned! {of.span()=>
            #[allow(unused_imports, reason = "without effect where the type is a `Result`")]
            const _: () = {
                use ::waft_sdk::__private::NoResult as _;
                ::core::assert!(
                    !::waft_sdk::__private::Probe::<#of>::IS_RESULT,
                    "this is a `Result` by another name, and would succeed with its error as output: \
                     write `Result<..>` or `TaskResult<..>`"
                );
            };
        }),
        Returns::Result(..) | Returns::Nothing => None,
    };
    let spec = spec(checked);
    let map = (!arguments.is_empty()).then(|| {
        quote! {
            /// Adds one task run for each element, known only when the run gets there.
            pub fn map(#(#arguments: impl ::waft_sdk::IntoMapped<#types>),*)
                -> ::waft_sdk::Node<::std::vec::Vec<#output>>
            {
                ::waft_sdk::__private::call(#name::__SPEC, true, &[#({
                    let (from, is_each) = ::waft_sdk::IntoMapped::<#types>::into_mapped(#arguments);
                    ::waft_sdk::__private::Wire { input: #inputs, from, is_each }
                }),*])
            }
        }
    });
    let documented = if description.is_empty() {
        format!("Adds the task `{}` to the flow.", checked.name)
    } else {
        description.clone()
    };
    quote! {
        #(#configured)*
        #[doc = #documented]
        #[allow(dead_code, reason = "a task may be called through `map` alone")]
        #visibility fn #name(#(#arguments: impl ::waft_sdk::IntoInput<#types>),*) -> ::waft_sdk::Node<#output> {
            ::waft_sdk::__private::call(#name::__SPEC, false, &[#(
                ::waft_sdk::__private::Wire {
                    input: #inputs,
                    from: ::waft_sdk::IntoInput::<#types>::into_input(#arguments),
                    is_each: false,
                }
            ),*])
        }

        #(#configured)*
        #[doc = #documented]
        #[allow(non_camel_case_types, dead_code, reason = "named like its function; only a name for what belongs to it")]
        #visibility struct #name {}

        #(#configured)*
        #[allow(dead_code, reason = "a task may be called plainly alone")]
        impl #name {
            #[doc(hidden)]
            pub const __SPEC: &'static ::waft_sdk::__private::TaskSpec = &#spec;

            #map

            /// Runs the body of the task.
            #(#attributes)*
            pub fn run(#(#parameters),*) #returns #body

            #[doc(hidden)]
            fn __attempt(__inputs: &mut ::waft_sdk::__private::Inputs)
                -> ::core::result::Result<::waft_sdk::__private::Value, ::waft_sdk::Signal>
            {
                let _ = &__inputs;
                #probe
                #(#takes)*
                #ends
            }
        }
    }
}

fn spec(checked: &Task) -> TokenStream {
    let Task {
        name,
        task,
        skip_on_upstream_skip,
        tags,
        net,
        dirs,
        env,
        secrets,
        ..
    } = checked;
    let function = task.name.unraw().to_string();
    let ident = &task.name;
    let description = &task.description;
    let trigger = trigger(&checked.trigger);
    let retries = option(checked.retries.as_ref().map(retries));
    let timeout_ms = number(checked.timeout_ms);
    let is_cached = checked.cache.is_some();
    let Cache { valid_ms, key } = checked.cache.as_ref().unwrap_or(&Cache {
        valid_ms: None,
        key: None,
    });
    let valid_ms = number(*valid_ms);
    let key = option(key.as_ref().map(|key| quote!(#key)));
    let memory_bytes = number(checked.memory_bytes);
    let cpu_ms = number(checked.cpu_ms);
    let output_bytes = number(checked.output_bytes);
    let parallel = option(checked.parallel.map(|parallel| quote!(#parallel)));
    let on_lost = variant(if checked.is_lost_for_good {
        "Fail"
    } else {
        "Retry"
    });
    quote! {
        ::waft_sdk::__private::TaskSpec {
            trigger: #trigger,
            skip_on_upstream_skip: #skip_on_upstream_skip,
            retries: #retries,
            timeout_ms: #timeout_ms,
            tags: &[#(#tags),*],
            is_cached: #is_cached,
            cache_valid_ms: #valid_ms,
            cache_key: #key,
            net: &[#(#net),*],
            dirs: &[#(#dirs),*],
            env: &[#(#env),*],
            secrets: &[#(#secrets),*],
            limits: ::waft_sdk::definition::Limits {
                memory_bytes: #memory_bytes,
                cpu_ms: #cpu_ms,
                output_bytes: #output_bytes,
                parallel: #parallel,
            },
            on_lost: ::waft_sdk::definition::OnLost::#on_lost,
            ..::waft_sdk::__private::TaskSpec::new(
                #name,
                ::core::concat!(::core::module_path!(), "::", #function),
                #description,
                #ident::__attempt,
            )
        }
    }
}

fn trigger(trigger: &Trigger) -> TokenStream {
    match trigger {
        Trigger::Plain(name) => {
            let name = variant(name);
            quote!(::waft_sdk::definition::Trigger::#name)
        }
        Trigger::Some(name, least, most) => {
            let name = variant(name);
            let least = option(least.as_ref().map(amount));
            let most = option(most.as_ref().map(amount));
            quote! {
                ::waft_sdk::definition::Trigger::#name(
                    ::waft_sdk::definition::Bounds { at_least: #least, at_most: #most }
                )
            }
        }
    }
}

fn amount(amount: &Amount) -> TokenStream {
    match amount {
        Amount::Count(count) => quote!(::waft_sdk::definition::Amount::Count(#count)),
        Amount::Percent(percent) => quote!(::waft_sdk::definition::Amount::Percent(#percent)),
    }
}

fn retries(retries: &Retries) -> TokenStream {
    let Retries {
        count,
        delay_ms,
        backoff,
        delay_max_ms,
        jitter_percent,
    } = retries;
    let backoff = variant(backoff);
    let delay_max_ms = number(*delay_max_ms);
    quote! {
        ::waft_sdk::definition::Retries {
            count: #count,
            delay_ms: #delay_ms,
            backoff: ::waft_sdk::definition::Backoff::#backoff,
            delay_max_ms: #delay_max_ms,
            jitter_percent: #jitter_percent,
        }
    }
}

/// The function, the type that stands for the flow, and on wasm32 the exports.
pub(crate) fn flow(checked: &Flow) -> TokenStream {
    let function = &checked.flow.function;
    let ident = &function.sig.ident;
    let visibility = &function.vis;
    let configured: Vec<_> = function
        .attrs
        .iter()
        .filter(|a| a.path().is_ident("cfg"))
        .collect();
    let name = &checked.name;
    let description = &checked.flow.description;
    let schedule = checked.schedule.as_ref().map(schedule);
    let parameters = checked.flow.parameters.iter().map(|parameter| {
        let name = parameter.name.unraw().to_string();
        let description = &parameter.description;
        let of = &parameter.of;
        let default = option(parameter.default.as_ref().map(|default| {
            quote_spanned!(default.span()=> || <#of as ::waft_sdk::__private::Parameter>::default(#default))
        }));
        let schema = quote_spanned! {of.span()=>
            <<#of as ::waft_sdk::__private::Parameter>::Of as ::waft_sdk::Schema>::schema
        };
        quote!(::waft_sdk::__private::parameter(#name, #description, #schema, #default))
    });
    let returned = match &function.sig.output {
        syn::ReturnType::Default => Span::call_site(),
        syn::ReturnType::Type(_, of) => of.span(),
    };
    let parameters = quote!(#(#parameters),*);
    let output = quote_spanned! {returned=>
        ::waft_sdk::__private::FlowOutput::output(#ident(#parameters))
    };
    quote! {
        #[allow(dead_code, reason = "only the component calls it")]
        #function

        #(#configured)*
        #[doc = "The flow, for tests and for the host."]
        #[allow(non_camel_case_types, dead_code, reason = "named like its function; never made")]
        #visibility struct #ident {}

        #(#configured)*
        impl ::waft_sdk::Flow for #ident {
            const NAME: &'static str = #name;
            const DESCRIPTION: &'static str = #description;

            #schedule

            #[allow(dead_code, reason = "only the component calls it, and what defaults are made of")]
            fn build() -> ::core::option::Option<::waft_sdk::__private::From> {
                #output
            }
        }

        #(#configured)*
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type WaftComponent = ::waft_sdk::__private::Component<#ident>;
            ::waft_sdk::bindings::export!(WaftComponent);
        };
    }
}

/// What a flow with a schedule has beside the others, so that those without carry nothing of it.
fn schedule(schedule: &Schedule) -> TokenStream {
    let clocks = schedule.clocks.iter().map(clock);
    let filters = schedule.filters.iter().map(filter);
    let catch_up = variant(schedule.catch_up);
    let overlap = variant(schedule.overlap);
    quote! {
        #[allow(dead_code, reason = "only the component calls it")]
        fn schedule() -> ::core::result::Result<
            ::core::option::Option<::waft_sdk::definition::Schedule>,
            ::std::string::String,
        > {
            const SPEC: ::waft_sdk::__private::ScheduleSpec = ::waft_sdk::__private::ScheduleSpec {
                clocks: &[#(#clocks),*],
                filters: &[#(#filters),*],
                catch_up: ::waft_sdk::definition::CatchUp::#catch_up,
                overlap: ::waft_sdk::definition::Overlap::#overlap,
            };
            ::waft_sdk::__private::schedule(&SPEC)
        }
    }
}

fn clock(clock: &Clock) -> TokenStream {
    let name = &clock.name;
    let rule = match &clock.rule {
        Rule::Interval(millis) => quote!(Interval(#millis)),
        Rule::Cron(line, zone) => quote!(Cron(#line, #zone)),
        Rule::Dates(dates) => quote!(Dates(&[#(#dates),*])),
    };
    let starts = option(clock.starts.as_ref().map(|starts| quote!(#starts)));
    let ends = option(clock.ends.as_ref().map(|ends| quote!(#ends)));
    let given = clock.given.iter().map(|given| {
        let (name, of, value) = (&given.name, &given.of, &given.value);
        let value = quote_spanned! {value.span()=>
            || <#of as ::waft_sdk::__private::Parameter>::default(#value)
        };
        quote!(::waft_sdk::__private::Given { name: #name, value: #value })
    });
    quote! {
        ::waft_sdk::__private::ClockSpec {
            name: #name,
            rule: ::waft_sdk::__private::RuleSpec::#rule,
            starts: #starts,
            ends: #ends,
            given: &[#(#given),*],
        }
    }
}

fn filter(filter: &Filter) -> TokenStream {
    let filter = match filter {
        Filter::Weekdays(days, zone) => quote!(Weekdays(&[#(#days),*], #zone)),
        Filter::Between(from, until, zone) => quote!(Between(#from, #until, #zone)),
        Filter::Except(dates, zone) => quote!(Except(&[#(#dates),*], #zone)),
    };
    quote!(::waft_sdk::__private::FilterSpec::#filter)
}

/// The implementation of `Schema`, and of `Subject` for an enum.
pub(crate) fn schema(shape: &Shape) -> TokenStream {
    let name = &shape.name;
    match &shape.content {
        Content::Properties(properties) => {
            let description = described(&shape.description);
            let adds = properties.iter().map(|property| {
                let (of, has_default) = (&property.of, property.has_default);
                let name = json(&property.name);
                let description = described(&property.description);
                quote_spanned!(of.span()=> .add::<#of>(#name, #description, #has_default))
            });
            quote! {
                impl ::waft_sdk::Schema for #name {
                    fn schema(text: &mut ::std::string::String) {
                        ::waft_sdk::__private::Properties::open(text, #description)#(#adds)*.close();
                    }
                }
            }
        }
        Content::Words(words) => {
            let words: Vec<String> = words.iter().map(|word| json(word)).collect();
            let description = match described(&shape.description) {
                text if text.is_empty() => String::new(),
                text => format!("\"description\":{text},"),
            };
            let text = format!(
                "{{{description}\"type\":\"string\",\"enum\":[{}]}}",
                words.join(",")
            );
            quote! {
                impl ::waft_sdk::Schema for #name {
                    fn schema(text: &mut ::std::string::String) {
                        text.push_str(#text);
                    }
                }
                impl ::waft_sdk::Subject for #name {}
            }
        }
    }
}

fn described(description: &str) -> String {
    if description.is_empty() {
        String::new()
    } else {
        json(description)
    }
}

/// A text as JSON.
fn json(text: &str) -> String {
    let mut json = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            control if control < ' ' => json.push_str(&format!("\\u{:04x}", u32::from(control))),
            plain => json.push(plain),
        }
    }
    json.push('"');
    json
}

fn option(value: Option<TokenStream>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

fn number(value: Option<u64>) -> TokenStream {
    option(value.map(|value| quote!(#value)))
}

fn variant(name: &str) -> Ident {
    format_ident!("{name}")
}
