//! Reads what the author wrote: functions, options, shapes.
//!
//! Refuses only what has no reading at all, such as a pattern in place of an argument's name. What an
//! option may say is `valid`'s to know.

use proc_macro2::{Ident, Span};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{
    Attribute, Block, Data, DeriveInput, Error, Expr, Fields, FnArg, GenericArgument, ItemFn, Lit,
    Meta, Pat, PathArguments, Result, ReturnType, Token, Type, Visibility,
};

/// `name = value, name = value`.
pub(crate) struct Options(pub(crate) Vec<(Ident, Expr)>);

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut options = Vec::new();
        while !input.is_empty() {
            let name = input.call(Ident::parse_any)?;
            if !input.peek(Token![=]) {
                return Err(Error::new(
                    name.span(),
                    format!("`{name}` needs a value: `{name} = ..`"),
                ));
            }
            input.parse::<Token![=]>()?;
            options.push((name, input.parse()?));
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(Self(options))
    }
}

/// A function under `#[task]`.
pub(crate) struct Task {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) description: String,
    pub(crate) visibility: Visibility,
    pub(crate) name: Ident,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) returns: Returns,
    pub(crate) body: Block,
}

/// An argument of a task.
pub(crate) struct Argument {
    pub(crate) is_mut: bool,
    pub(crate) name: Ident,
    pub(crate) of: Type,
}

/// What a task returns.
pub(crate) enum Returns {
    Nothing,
    Plain(Box<Type>),
    /// The whole type, and what it holds when all is well.
    Result(Box<Type>, Box<Type>),
}

impl Task {
    pub(crate) fn read(function: ItemFn) -> Result<Self> {
        plain_signature(&function, "task")?;
        let mut arguments = Vec::new();
        for argument in &function.sig.inputs {
            let argument = typed(argument, "task")?;
            if let Some(attribute) = argument.attrs.first() {
                return Err(Error::new(
                    attribute.span(),
                    "an argument of a task takes no attributes",
                ));
            }
            if let Type::Reference(_) | Type::ImplTrait(_) = &*argument.ty {
                return Err(Error::new(
                    argument.ty.span(),
                    "a task takes owned values, such as `String` or `Vec<T>`: they come from another sandbox",
                ));
            }
            let (is_mut, name) = named(&argument.pat)?;
            arguments.push(Argument {
                is_mut,
                name,
                of: (*argument.ty).clone(),
            });
        }
        let returns = match function.sig.output {
            ReturnType::Default => Returns::Nothing,
            ReturnType::Type(_, of) => match held(&of) {
                Some(held) => Returns::Result(of, Box::new(held)),
                None => Returns::Plain(of),
            },
        };
        let (description, attributes) = docs(function.attrs);
        Ok(Self {
            attributes,
            description,
            visibility: function.vis,
            name: function.sig.ident,
            arguments,
            returns,
            body: *function.block,
        })
    }
}

/// A function under `#[flow]`.
pub(crate) struct Flow {
    pub(crate) description: String,
    /// The function, without attributes on its arguments.
    pub(crate) function: ItemFn,
    pub(crate) parameters: Vec<Parameter>,
}

/// An argument of a flow.
pub(crate) struct Parameter {
    pub(crate) name: Ident,
    pub(crate) description: String,
    /// The whole type, `Param<T>`.
    pub(crate) of: Type,
    pub(crate) default: Option<Expr>,
}

impl Flow {
    pub(crate) fn read(mut function: ItemFn) -> Result<Self> {
        plain_signature(&function, "flow")?;
        let mut parameters = Vec::new();
        for argument in &mut function.sig.inputs {
            typed(argument, "flow")?;
            if let FnArg::Typed(argument) = argument {
                let (description, attributes) = docs(std::mem::take(&mut argument.attrs));
                let (_, name) = named(&argument.pat)?;
                let inner = inside(&argument.ty, &["Param"]).ok_or_else(|| {
                    Error::new(
                        argument.ty.span(),
                        "an argument of a flow is a `Param<T>`: a flow is built before its values are known",
                    )
                })?;
                let mut default = None;
                for attribute in attributes {
                    if !attribute.path().is_ident("default") {
                        return Err(Error::new(
                            attribute.span(),
                            "a parameter knows only `#[default(..)]`",
                        ));
                    }
                    if default.replace(attribute.parse_args::<Expr>()?).is_some() {
                        return Err(Error::new(attribute.span(), "a parameter has one default"));
                    }
                }
                if default.is_none() && inside(&inner, &["Option"]).is_some() {
                    default = Some(syn::parse_quote!(::core::option::Option::None));
                }
                parameters.push(Parameter {
                    name,
                    description,
                    of: (*argument.ty).clone(),
                    default,
                });
            }
        }
        let description = docs(function.attrs.clone()).0;
        Ok(Self {
            description,
            function,
            parameters,
        })
    }
}

/// A type under `#[derive(Schema)]`.
pub(crate) struct Shape {
    pub(crate) name: Ident,
    pub(crate) description: String,
    pub(crate) content: Content,
}

/// What a shape is made of.
pub(crate) enum Content {
    Properties(Vec<Property>),
    Words(Vec<String>),
}

/// A named field.
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) of: Type,
    pub(crate) has_default: bool,
}

impl Shape {
    pub(crate) fn read(input: DeriveInput) -> Result<Self> {
        if let Some(generic) = input.generics.params.first() {
            return Err(Error::new(
                generic.span(),
                "`Schema` cannot be derived for a generic type",
            ));
        }
        let serde = Serde::read(&input.attrs)?;
        let description = docs(input.attrs).0;
        let content = match input.data {
            Data::Struct(data) => {
                let Fields::Named(fields) = data.fields else {
                    return Err(Error::new(
                        input.ident.span(),
                        "`Schema` is derived for structs with named fields",
                    ));
                };
                let mut properties = Vec::new();
                for field in fields.named {
                    let own = Serde::read(&field.attrs)?;
                    let Some(name) = field.ident.filter(|_| !own.is_skipped) else {
                        continue;
                    };
                    properties.push(Property {
                        name: own
                            .name
                            .unwrap_or_else(|| serde.case.field(&name.unraw().to_string())),
                        description: docs(field.attrs).0,
                        of: field.ty,
                        has_default: own.has_default || serde.has_default,
                    });
                }
                Content::Properties(properties)
            }
            Data::Enum(data) => {
                let mut words = Vec::new();
                for variant in data.variants {
                    if !matches!(variant.fields, Fields::Unit) {
                        return Err(Error::new(
                            variant.span(),
                            "`Schema` is derived for enums whose variants hold nothing",
                        ));
                    }
                    let own = Serde::read(&variant.attrs)?;
                    if !own.is_skipped {
                        words.push(own.name.unwrap_or_else(|| {
                            serde.case.variant(&variant.ident.unraw().to_string())
                        }));
                    }
                }
                Content::Words(words)
            }
            Data::Union(data) => {
                return Err(Error::new(
                    data.union_token.span,
                    "`Schema` is derived for structs and enums",
                ));
            }
        };
        Ok(Self {
            name: input.ident,
            description,
            content,
        })
    }
}

/// What serde was told about a name.
#[derive(Default)]
struct Serde {
    name: Option<String>,
    case: Case,
    has_default: bool,
    is_skipped: bool,
}

impl Serde {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut serde = Self::default();
        for attribute in attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("serde"))
        {
            attribute.parse_nested_meta(|meta| {
                let word = meta
                    .path
                    .get_ident()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                match word.as_str() {
                    "rename" => serde.name = Some(meta.value()?.parse::<syn::LitStr>()?.value()),
                    "rename_all" => {
                        let case = meta.value()?.parse::<syn::LitStr>()?;
                        serde.case = Case::read(&case.value())
                            .ok_or_else(|| Error::new(case.span(), "serde knows no such case"))?;
                    }
                    "default" => {
                        serde.has_default = true;
                        if meta.input.peek(Token![=]) {
                            meta.value()?.parse::<Expr>()?;
                        }
                    }
                    "skip" | "skip_deserializing" => serde.is_skipped = true,
                    "deny_unknown_fields"
                    | "skip_serializing"
                    | "crate"
                    | "skip_serializing_if" => {
                        if meta.input.peek(Token![=]) {
                            meta.value()?.parse::<Expr>()?;
                        }
                    }
                    _ => {
                        return Err(meta.error(format!(
                            "`Schema` cannot follow serde's `{word}`: implement `Schema` by hand"
                        )));
                    }
                }
                Ok(())
            })?;
        }
        Ok(serde)
    }
}

/// How serde spells names.
#[derive(Clone, Copy, Default)]
enum Case {
    #[default]
    AsIs,
    Lower,
    Upper,
    Pascal,
    Camel,
    Snake,
    ScreamingSnake,
    Kebab,
    ScreamingKebab,
}

impl Case {
    fn read(word: &str) -> Option<Self> {
        Some(match word {
            "lowercase" => Self::Lower,
            "UPPERCASE" => Self::Upper,
            "PascalCase" => Self::Pascal,
            "camelCase" => Self::Camel,
            "snake_case" => Self::Snake,
            "SCREAMING_SNAKE_CASE" => Self::ScreamingSnake,
            "kebab-case" => Self::Kebab,
            "SCREAMING-KEBAB-CASE" => Self::ScreamingKebab,
            _ => return None,
        })
    }

    /// A field, which Rust spells `like_this`.
    fn field(self, name: &str) -> String {
        match self {
            Self::AsIs | Self::Lower | Self::Snake => name.to_string(),
            Self::Upper | Self::ScreamingSnake => name.to_uppercase(),
            Self::Kebab => name.replace('_', "-"),
            Self::ScreamingKebab => name.to_uppercase().replace('_', "-"),
            Self::Pascal => name.split('_').map(capital).collect(),
            Self::Camel => small(&name.split('_').map(capital).collect::<String>()),
        }
    }

    /// A variant, which Rust spells `LikeThis`.
    fn variant(self, name: &str) -> String {
        let snake = || {
            let mut text = String::new();
            for letter in name.chars() {
                if letter.is_uppercase() && !text.is_empty() {
                    text.push('_');
                }
                text.extend(letter.to_lowercase());
            }
            text
        };
        match self {
            Self::AsIs | Self::Pascal => name.to_string(),
            Self::Lower => name.to_lowercase(),
            Self::Upper => name.to_uppercase(),
            Self::Camel => small(name),
            Self::Snake => snake(),
            Self::ScreamingSnake => snake().to_uppercase(),
            Self::Kebab => snake().replace('_', "-"),
            Self::ScreamingKebab => snake().to_uppercase().replace('_', "-"),
        }
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

fn small(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Refuses what a sandbox cannot call.
fn plain_signature(function: &ItemFn, kind: &str) -> Result<()> {
    let signature = &function.sig;
    let refuse = |span: Span, why: &str| Err(Error::new(span, format!("a {kind} cannot be {why}")));
    if let Some(word) = &signature.asyncness {
        return refuse(
            word.span,
            "`async`: it may block, the host runs other tasks beside it",
        );
    }
    if let Some(word) = &signature.unsafety {
        return refuse(word.span, "`unsafe`");
    }
    if let Some(word) = &signature.abi {
        return refuse(word.extern_token.span, "`extern`");
    }
    if let Some(word) = &signature.variadic {
        return refuse(word.dots.spans[0], "variadic");
    }
    if let Some(generic) = signature.generics.params.first() {
        return refuse(
            generic.span(),
            "generic: the host calls it with values of one type",
        );
    }
    Ok(())
}

fn typed<'a>(argument: &'a FnArg, kind: &str) -> Result<&'a syn::PatType> {
    match argument {
        FnArg::Typed(argument) => Ok(argument),
        FnArg::Receiver(receiver) => Err(Error::new(
            receiver.span(),
            format!("a {kind} is a free function: it cannot take `self`"),
        )),
    }
}

fn named(pattern: &Pat) -> Result<(bool, Ident)> {
    match pattern {
        Pat::Ident(name) if name.by_ref.is_none() && name.subpat.is_none() => {
            Ok((name.mutability.is_some(), name.ident.clone()))
        }
        other => Err(Error::new(
            other.span(),
            "an argument needs a plain name: the input is called by it",
        )),
    }
}

/// What a `Result` holds when all is well.
fn held(of: &Type) -> Option<Type> {
    let Type::Path(path) = of else { return None };
    let last = path.path.segments.last()?;
    if last.ident == "TaskResult" && last.arguments.is_empty() {
        return Some(syn::parse_quote_spanned!(of.span()=> ()));
    }
    inside(of, &["TaskResult", "Result"])
}

/// The first type argument, if the type is called one of these.
fn inside(of: &Type, names: &[&str]) -> Option<Type> {
    let Type::Path(path) = of else { return None };
    let last = path.path.segments.last()?;
    if !names.iter().any(|name| last.ident == name) {
        return None;
    }
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(of) => Some(of.clone()),
        _ => None,
    })
}

/// Parts doc comments from the other attributes.
fn docs(attributes: Vec<Attribute>) -> (String, Vec<Attribute>) {
    let mut lines = Vec::new();
    let mut others = Vec::new();
    for attribute in attributes {
        match &attribute.meta {
            Meta::NameValue(meta) if meta.path.is_ident("doc") => {
                if let Expr::Lit(syn::ExprLit {
                    lit: Lit::Str(line),
                    ..
                }) = &meta.value
                {
                    lines.push(
                        line.value()
                            .strip_prefix(' ')
                            .map_or_else(|| line.value(), str::to_string),
                    );
                }
            }
            _ => others.push(attribute),
        }
    }
    (lines.join("\n").trim().to_string(), others)
}
