//! `#[derive(Module)]` for TensorLogic: a struct's parameters and buffers are those of its fields.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::ext::IdentExt;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, Generics, LitStr, Member, Result, parse_quote};

/// Implements `tensorlogic::nn::Module`: visits the fields in their order, each under its name (a tuple
/// struct's under its number), so that paths read `encoder.0.weight`.
///
/// Every type parameter gets the bound `Module`. Two attributes go on a field:
///
/// - `#[module(skip)]` leaves it out; its type need not be a `Module` then.
/// - `#[module(rename = "weight")]` gives it another name in paths.
///
/// ```ignore
/// #[derive(Module)]
/// struct Mlp<A> {
///     #[module(rename = "fc1")]
///     first: Linear,
///     activation: A,
///     second: Linear,
///     #[module(skip)]
///     label: String,
/// }
/// ```
#[proc_macro_derive(Module, attributes(module))]
pub fn derive_module(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(input).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(input: DeriveInput) -> Result<TokenStream> {
    let fields = struct_fields(&input)?;
    if let Some(attribute) = module_attributes(&input.attrs).next() {
        return Err(Error::new_spanned(attribute, "#[module(..)] goes on a field, not on the struct"));
    }
    let visited = visited(fields)?;
    let visits = visited.iter().map(Visited::visit);
    let ident = &input.ident;
    let generics = with_bounds(input.generics.clone());
    let (parameters, arguments, conditions) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #parameters ::tensorlogic::nn::Module for #ident #arguments #conditions {
            #[allow(unused_variables)]
            fn visit<'__visit>(
                &'__visit self,
                path: &mut ::tensorlogic::nn::Path,
                visitor: &mut dyn ::core::ops::FnMut(&::tensorlogic::nn::Path, ::tensorlogic::nn::Item<'__visit>),
            ) {
                #(#visits)*
            }
        }
    })
}

fn struct_fields(input: &DeriveInput) -> Result<&Fields> {
    let kind = match &input.data {
        Data::Struct(data) => return Ok(&data.fields),
        Data::Enum(_) => "an enum",
        Data::Union(_) => "a union",
    };
    let message = format!(
        "derive(Module) works on structs, and `{}` is {kind}; implement tensorlogic::nn::Module by hand, or hold \
         one Option field a variant in a struct",
        input.ident
    );
    Err(Error::new_spanned(&input.ident, message))
}

fn module_attributes(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("module"))
}

/// A field that is part of the module.
struct Visited {
    member: Member,
    /// As paths have it.
    name: String,
}

impl Visited {
    fn visit(&self) -> TokenStream {
        let Visited { member, name } = self;
        quote! {
            path.push(#name);
            ::tensorlogic::nn::Module::visit(&self.#member, path, visitor);
            path.pop();
        }
    }
}

/// The fields that are not skipped. Two of the same name would overwrite each other in a file.
fn visited(fields: &Fields) -> Result<Vec<Visited>> {
    let mut list: Vec<Visited> = Vec::new();
    for (member, field) in fields.members().zip(fields) {
        let options = Options::of(field)?;
        if options.skip {
            continue;
        }
        let name = options.rename.map_or_else(|| name_of(&member), |literal| literal.value());
        if let Some(other) = list.iter().find(|other| other.name == name) {
            let message = format!(
                "this field and `{}` are both named \"{name}\"; rename one with #[module(rename = \"..\")]",
                name_of(&other.member)
            );
            return Err(Error::new_spanned(member, message));
        }
        list.push(Visited { member, name });
    }
    Ok(list)
}

/// The field's own name: `type` for `r#type`, `0` for the first of a tuple struct.
fn name_of(member: &Member) -> String {
    match member {
        Member::Named(ident) => ident.unraw().to_string(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

/// What `#[module(..)]` says of a field.
#[derive(Default)]
struct Options {
    skip: bool,
    rename: Option<LitStr>,
}

impl Options {
    fn of(field: &Field) -> Result<Options> {
        let mut options = Options::default();
        for attribute in module_attributes(&field.attrs) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("skip") {
                    options.skip = true;
                } else if meta.path.is_ident("rename") {
                    options.rename = Some(meta.value()?.parse()?);
                } else {
                    let name = meta.path.to_token_stream();
                    return Err(meta.error(format!("no option `{name}`; there are `skip` and `rename = \"name\"`")));
                }
                Ok(())
            })?;
        }
        options.checked()
    }

    fn checked(self) -> Result<Options> {
        match &self.rename {
            Some(name) if self.skip => {
                Err(Error::new_spanned(name, "a skipped field has no name; remove `skip` or `rename`"))
            }
            Some(name) if name.value().is_empty() => Err(Error::new_spanned(name, "the name must not be empty")),
            _ => Ok(self),
        }
    }
}

/// Every type parameter with the bound `Module`.
fn with_bounds(mut generics: Generics) -> Generics {
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(::tensorlogic::nn::Module));
    }
    generics
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(input: DeriveInput) -> String {
        expand(input).unwrap().to_string()
    }

    fn refused(input: DeriveInput) -> String {
        expand(input).unwrap_err().to_string()
    }

    /// What is expected: `header` is the impl's, `body` visits the fields.
    fn module(header: TokenStream, body: TokenStream) -> String {
        let text = quote! {
            #[automatically_derived]
            #header {
                #[allow(unused_variables)]
                fn visit<'__visit>(
                    &'__visit self,
                    path: &mut ::tensorlogic::nn::Path,
                    visitor: &mut dyn ::core::ops::FnMut(&::tensorlogic::nn::Path, ::tensorlogic::nn::Item<'__visit>),
                ) {
                    #body
                }
            }
        };
        text.to_string()
    }

    #[test]
    fn named_fields_are_visited_in_their_order() {
        let input = parse_quote! {
            pub struct Linear {
                pub weight: Parameter,
                bias: Option<Parameter>,
            }
        };
        let body = quote! {
            path.push("weight");
            ::tensorlogic::nn::Module::visit(&self.weight, path, visitor);
            path.pop();
            path.push("bias");
            ::tensorlogic::nn::Module::visit(&self.bias, path, visitor);
            path.pop();
        };
        assert_eq!(expanded(input), module(quote!(impl ::tensorlogic::nn::Module for Linear), body));
    }

    #[test]
    fn tuple_fields_are_named_by_number_and_skipping_does_not_renumber() {
        let input = parse_quote!(
            struct Pair(#[module(skip)] String, Linear);
        );
        let body = quote! {
            path.push("1");
            ::tensorlogic::nn::Module::visit(&self.1, path, visitor);
            path.pop();
        };
        assert_eq!(expanded(input), module(quote!(impl ::tensorlogic::nn::Module for Pair), body));
    }

    #[test]
    fn names_can_be_changed_and_raw_identifiers_lose_their_mark() {
        let input = parse_quote! {
            struct Layer {
                #[doc = "Other attributes are of no concern."]
                #[module(rename = "weight")]
                table: Parameter,
                r#type: Linear,
            }
        };
        let body = quote! {
            path.push("weight");
            ::tensorlogic::nn::Module::visit(&self.table, path, visitor);
            path.pop();
            path.push("type");
            ::tensorlogic::nn::Module::visit(&self.r#type, path, visitor);
            path.pop();
        };
        assert_eq!(expanded(input), module(quote!(impl ::tensorlogic::nn::Module for Layer), body));
    }

    #[test]
    fn structs_without_fields_visit_nothing() {
        for input in [
            parse_quote!(
                struct Relu;
            ),
            parse_quote!(
                struct Relu {}
            ),
            parse_quote!(
                struct Relu();
            ),
        ] {
            assert_eq!(expanded(input), module(quote!(impl ::tensorlogic::nn::Module for Relu), quote!()));
        }
    }

    #[test]
    fn type_parameters_are_bound_and_defaults_left_out() {
        let input = parse_quote! {
            struct Residual<'a, A: Clone, B = Relu, const N: usize = 4>
            where
                B: Default,
            {
                #[module(skip)]
                name: &'a str,
                inner: [A; N],
                #[module(skip)]
                other: B,
            }
        };
        let header = quote! {
            impl<'a, A: Clone + ::tensorlogic::nn::Module, B: ::tensorlogic::nn::Module, const N: usize>
                ::tensorlogic::nn::Module for Residual<'a, A, B, N>
            where
                B: Default,
        };
        let body = quote! {
            path.push("inner");
            ::tensorlogic::nn::Module::visit(&self.inner, path, visitor);
            path.pop();
        };
        assert_eq!(expanded(input), module(header, body));
    }

    #[test]
    fn enums_and_unions_are_told_what_to_do() {
        let message = refused(parse_quote!(
            enum Norm {
                Layer(LayerNorm),
                None,
            }
        ));
        assert!(message.contains("`Norm` is an enum") && message.contains("by hand"), "{message}");
        let message = refused(parse_quote!(union Bits { f: f32, u: u32 }));
        assert!(message.contains("`Bits` is a union"), "{message}");
    }

    #[test]
    fn wrong_attributes_are_refused() {
        let cases: [(DeriveInput, &str); 7] = [
            (
                parse_quote!(
                    struct A {
                        #[module(skipp)]
                        x: B,
                    }
                ),
                "no option `skipp`; there are `skip` and `rename",
            ),
            (
                parse_quote!(
                    struct A {
                        #[module(rename = 3)]
                        x: B,
                    }
                ),
                "expected string literal",
            ),
            (
                parse_quote!(
                    struct A {
                        #[module(rename = "")]
                        x: B,
                    }
                ),
                "must not be empty",
            ),
            (
                parse_quote!(
                    struct A {
                        #[module(skip, rename = "y")]
                        x: B,
                    }
                ),
                "a skipped field has no name",
            ),
            (
                parse_quote!(
                    struct A {
                        #[module]
                        x: B,
                    }
                ),
                "expected attribute arguments",
            ),
            (
                parse_quote!(
                    #[module(skip)]
                    struct A {
                        x: B,
                    }
                ),
                "goes on a field",
            ),
            (
                parse_quote!(
                    struct A {
                        x: B,
                        #[module(rename = "x")]
                        y: B,
                    }
                ),
                "this field and `x` are both named \"x\"",
            ),
        ];
        for (input, wanted) in cases {
            let message = refused(input);
            assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
        }
    }
}
