//! From Metal Shading Language to CUDA C++ and to host C++: token by token, for sources that keep to the
//! convention of this crate's kernels (ARCHITECTURE.md).
//!
//! Lines stay where they are, so that a compiler's message about line 12 is about line 12 of the source.
//! The result goes behind a prelude (`shaders/prelude/`), which supplies the names of `<metal_stdlib>`.

use std::fmt::Write;

/// What a source is translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `extern "C" __global__` functions of the kernel's name, for NVRTC with `-default-device`. Buffers
    /// are pointer parameters, the arguments a `const __grid_constant__` struct; positions in the grid are
    /// read from prelude functions named after the attributes, `tl_threadgroup_position_in_grid()` for one.
    Cuda,
    /// A function `tl_entry_NAME(const TlContext*)` for each kernel, which runs it for one thread.
    #[cfg_attr(not(feature = "soft-metal"), allow(dead_code))]
    Host,
}

/// Translates a source; the prelude is not part of the result.
///
/// # Errors
/// Says what in the source strays from the convention.
pub(crate) fn translate(source: &str, target: Target) -> Result<String, String> {
    let tokens = tokens(source)?;
    let mut translator =
        Translator { tokens: &tokens, bound: None, target, at: 0, out: String::new(), entries: String::new() };
    translator.run()?;
    let Translator { mut out, entries, .. } = translator;
    out.push_str(&entries);
    Ok(out)
}

/// Whether a token stands for nothing: spaces, or a comment.
fn is_blank(token: &str) -> bool {
    token.starts_with(char::is_whitespace) || token.starts_with("//") || token.starts_with("/*")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Splits a source into names, numbers, literals, comments, spaces and single other characters. Nothing
/// is lost: joined, they are the source.
fn tokens(source: &str) -> Result<Vec<&str>, String> {
    let bytes = source.as_bytes();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let run = |part: &dyn Fn(u8) -> bool| rest.iter().take_while(|&&b| part(b)).count();
        let upto = |end: &str| source[at + 2..].find(end).map(|n| n + 2);
        let length = match rest[0] {
            b' ' | b'\t' | b'\n' | b'\r' => run(&|b| b.is_ascii_whitespace()),
            b'/' if rest.starts_with(b"//") => upto("\n").unwrap_or(rest.len()),
            b'/' if rest.starts_with(b"/*") => upto("*/").ok_or("a comment without an end")? + 2,
            quote @ (b'"' | b'\'') => {
                let mut end = 1;
                while rest.get(end).is_some_and(|&b| b != quote) {
                    end += if rest[end] == b'\\' { 2 } else { 1 };
                }
                if end >= rest.len() {
                    return Err("a literal without an end".into());
                }
                end + 1
            }
            first if first.is_ascii_digit() => run(&|b| is_word(b) || b == b'.'),
            first if is_word(first) => run(&is_word),
            _ => source[at..].chars().next().map_or(1, char::len_utf8),
        };
        tokens.push(&source[at..at + length]);
        at += length;
    }
    Ok(tokens)
}

/// Tells apart what compilers are handed for the same source: by a prelude, and by this translation. For the keys
/// of compiled kernels.
pub(crate) fn fingerprint(prelude: &str) -> u64 {
    let texts = [prelude, include_str!("translate.rs")];
    // FNV-1a.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    texts.iter().flat_map(|text| text.bytes()).fold(0xcbf2_9ce4_8422_2325, step)
}

/// A parameter of a kernel.
struct Parameter {
    /// Without address space, pointer or reference: `const half`, `Args`, `uint3`.
    ty: String,
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Buffer,
    Args,
    /// An attribute from [`POSITIONS`].
    Position(&'static str),
}

/// The attributes for positions, and whether they have three dimensions.
const POSITIONS: [(&str, bool); 5] = [
    ("threadgroup_position_in_grid", true),
    ("threadgroups_per_grid", true),
    ("thread_index_in_threadgroup", false),
    ("thread_index_in_simdgroup", false),
    ("simdgroup_index_in_threadgroup", false),
];

/// The attribute with the most threads that a group of the kernel has.
const THREADS: &str = "max_total_threads_per_threadgroup";

struct Translator<'a> {
    tokens: &'a [&'a str],
    /// Of the next kernel.
    bound: Option<u32>,
    target: Target,
    at: usize,
    out: String,
    /// What follows the translated text: the host's entry points.
    entries: String,
}

impl<'a> Translator<'a> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(&token) = self.tokens.get(self.at) {
            match token {
                "kernel" => self.kernel()?,
                "[" if self.peek(2) == Some(THREADS) => self.threads()?,
                "#" if self.peek(1) == Some("include") => self.include()?,
                _ => self.plain(),
            }
        }
        Ok(())
    }

    /// Takes in `[[max_total_threads_per_threadgroup(n)]]`, which stands before a kernel.
    fn threads(&mut self) -> Result<(), String> {
        let words: Vec<&str> = (0..8).filter_map(|n| self.peek(n)).collect();
        let ["[", "[", THREADS, "(", count, ")", "]", "]"] = words[..] else {
            return Err(format!("expected [[{THREADS}(n)]]"));
        };
        self.bound = Some(count.parse().map_err(|_| format!("{THREADS}({count}): not a number"))?);
        for _ in 0..words.len() {
            let blanks = self.tokens[self.at..].iter().take_while(|t| is_blank(t)).count();
            self.at += blanks + 1;
        }
        Ok(())
    }

    /// The `n`th token from here that stands for something; 0 is the current one, if it does.
    fn peek(&self, n: usize) -> Option<&'a str> {
        self.tokens[self.at..].iter().filter(|t| !is_blank(t)).nth(n).copied()
    }

    /// Drops an include of the standard library; the prelude stands for it.
    fn include(&mut self) -> Result<(), String> {
        let is_end = |t: &&str| is_blank(t) && t.contains('\n');
        let line = self.tokens[self.at..].iter().take_while(|t| !is_end(t));
        let (length, text) = line.fold((0, String::new()), |(n, text), t| (n + 1, text + t));
        if !text.contains("<metal_") {
            return Err(format!("{text}: only headers of the Metal standard library can be included"));
        }
        self.at += length;
        Ok(())
    }

    /// Writes one token outside of entries' signatures and threadgroup declarations.
    fn plain(&mut self) {
        let token = self.tokens[self.at];
        let written = match token {
            "device" | "thread" | "threadgroup" => "",
            "constant" => {
                let before = self.tokens[..self.at].iter().rfind(|t| !is_blank(t));
                let doubled = before == Some(&"const") || self.peek(1) == Some("const");
                if doubled { "" } else { "const" }
            }
            _ => token,
        };
        self.out.push_str(written);
        self.at += 1;
        // A dropped word takes the space behind it along.
        if written.is_empty() && self.tokens.get(self.at) == Some(&" ") {
            self.at += 1;
        }
    }

    /// Translates a kernel: its signature, then its body up to the closing brace.
    fn kernel(&mut self) -> Result<(), String> {
        if self.tokens[..self.at].iter().rfind(|t| !is_blank(t)) == Some(&">") {
            return Err("a kernel that is a template: entry points are plain functions".into());
        }
        let start = self.at;
        let found = (self.peek(1), self.peek(2), self.peek(3));
        let (Some("void"), Some(name), Some("(")) = found else {
            return Err("kernel: expected `kernel void NAME(`".into());
        };
        let open = self.tokens[start..].iter().position(|&t| t == "(").expect("just seen") + start;
        let close = closing(self.tokens, open).ok_or_else(|| format!("kernel {name}: its parameters have no end"))?;
        let parameters =
            parameters(&self.tokens[open + 1..close]).map_err(|reason| format!("kernel {name}: {reason}"))?;
        self.at = close + 1;
        if self.peek(0) != Some("{") {
            return Err(format!("kernel {name}: expected a body behind the parameters"));
        }
        let brace = self.tokens[self.at..].iter().position(|&t| t == "{").expect("just seen") + self.at;
        let end = closing(self.tokens, brace).ok_or_else(|| format!("kernel {name}: its body has no end"))?;
        self.signature(name, &parameters);
        // The lines that the signature took.
        let lines = self.tokens[start..=brace].iter().map(|t| t.matches('\n').count()).sum::<usize>();
        self.out.extend(std::iter::repeat_n('\n', lines));
        self.at = brace + 1;
        let mut declared = 0;
        while self.at < end {
            match self.declaration() {
                Some((ty, variable, dims, next)) => {
                    match self.target {
                        Target::Cuda => write!(self.out, "__shared__ __align__(16) {ty} {variable}{dims};"),
                        Target::Host => write!(self.out, "TL_THREADGROUP({declared}, {ty}, {variable}, {dims});"),
                    }
                    .expect("a string takes all");
                    declared += 1;
                    self.at = next;
                }
                None => self.plain(),
            }
        }
        Ok(())
    }

    /// A declaration of threadgroup memory at the current token: its type, name, dimensions, and the token
    /// behind its semicolon.
    fn declaration(&self) -> Option<(String, &'a str, String, usize)> {
        if self.tokens[self.at] != "threadgroup" {
            return None;
        }
        let before = self.tokens[..self.at].iter().rfind(|t| !is_blank(t));
        let end = self.tokens[self.at..].iter().position(|&t| t == ";")? + self.at;
        let words: Vec<&str> = self.tokens[self.at + 1..end].iter().filter(|t| !is_blank(t)).copied().collect();
        let outside = words.iter().position(|&t| t == "[").unwrap_or(words.len());
        let is_plain = words[..outside].iter().all(|t| t.bytes().all(is_word));
        if !matches!(before, Some(&("{" | "}" | ";"))) || outside < 2 || !is_plain || words.contains(&"=") {
            return None;
        }
        Some((words[..outside - 1].join(" "), words[outside - 1], words[outside..].concat(), end + 1))
    }

    /// Writes the signature of a kernel and the brace that opens its body.
    fn signature(&mut self, name: &str, parameters: &[Parameter]) {
        let list = |one: &dyn Fn(&Parameter) -> Option<String>| {
            parameters.iter().filter_map(one).collect::<Vec<String>>().join(", ")
        };
        match self.target {
            Target::Cuda => {
                let declared = list(&|Parameter { ty, name, kind }| match kind {
                    Kind::Buffer => Some(format!("{ty}* {name}")),
                    Kind::Args => Some(format!("const __grid_constant__ {ty} {name}")),
                    Kind::Position(_) => None,
                });
                let bound = self.bound.take().map_or(String::new(), |threads| format!("__launch_bounds__({threads}) "));
                self.out += &format!("extern \"C\" __global__ void {bound}{name}({declared}) {{");
                for Parameter { ty, name, kind } in parameters {
                    if let Kind::Position(attribute) = kind {
                        let value = position(attribute, ty, &format!("tl_{attribute}()"));
                        self.out += &format!(" const {ty} {name} = {value};");
                    }
                }
            }
            Target::Host => {
                let declared = list(&|Parameter { ty, name, kind }| {
                    Some(match kind {
                        Kind::Buffer => format!("{ty}* {name}"),
                        Kind::Args => format!("const {ty}& {name}"),
                        Kind::Position(_) => format!("const {ty} {name}"),
                    })
                });
                let mut buffers = 0..;
                let passed = parameters.iter().map(|Parameter { ty, kind, .. }| match kind {
                    Kind::Buffer => format!("({ty}*)tl->buffers[{}]", buffers.next().expect("without end")),
                    Kind::Args => format!("*(const {ty}*)tl->args"),
                    Kind::Position(attribute) => position(attribute, ty, &format!("tl->{attribute}")),
                });
                let passed = passed.collect::<Vec<_>>().join(", ");
                self.out += &format!("TL_KERNEL void {name}({declared}) {{");
                self.entries += &format!("\nTL_ENTRY({name}) {{ {name}({passed}); }}");
            }
        }
    }
}

/// The expression for a position as the type that a kernel asks for.
fn position(attribute: &str, ty: &str, value: &str) -> String {
    let spatial = POSITIONS.iter().any(|&(name, spatial)| name == attribute && spatial);
    match (spatial, ty) {
        (true, "uint") => format!("{value}.x"),
        (true, "uint2") => format!("uint2({value}.x, {value}.y)"),
        _ => value.into(),
    }
}

/// Where the bracket that opens at `open` closes.
fn closing(tokens: &[&str], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, &token) in tokens.iter().enumerate().skip(open) {
        depth += i32::from(matches!(token, "(" | "{" | "[")) - i32::from(matches!(token, ")" | "}" | "]"));
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// Reads the parameters of a kernel, and checks their order.
fn parameters(tokens: &[&str]) -> Result<Vec<Parameter>, String> {
    let words: Vec<&str> = tokens.iter().filter(|t| !is_blank(t)).copied().collect();
    let (mut list, mut depth, mut start, mut bound) = (Vec::new(), 0, 0, 0);
    for at in 0..=words.len() {
        match words.get(at) {
            Some(&("(" | "[")) => depth += 1,
            Some(&(")" | "]")) => depth -= 1,
            Some(&",") | None if depth == 0 && start < at => {
                let (parameter, index) = parameter(&words[start..at])?;
                if let Some(index) = index {
                    let behind = list.iter().find(|p: &&Parameter| p.kind != Kind::Buffer);
                    if let Some(behind) = behind {
                        return Err(format!("parameter {} comes behind {}", parameter.name, behind.name));
                    }
                    if index != bound {
                        return Err(format!("parameter {} is buffer {index}, not {bound}", parameter.name));
                    }
                    bound += 1;
                }
                list.push(parameter);
                start = at + 1;
            }
            _ => {}
        }
    }
    Ok(list)
}

/// Reads one parameter, and the index of its buffer if it is one.
fn parameter(words: &[&str]) -> Result<(Parameter, Option<usize>), String> {
    let text = || words.join(" ");
    let attributes = words.iter().position(|&t| t == "[").ok_or_else(|| format!("`{}` has no attribute", text()))?;
    let (declared, attribute) = (&words[..attributes], &words[attributes..]);
    let [types @ .., name] = declared else {
        return Err(format!("`{}` has no name", text()));
    };
    if matches!(*name, "device" | "constant" | "threadgroup" | "thread" | "kernel") || !name.bytes().all(is_word) {
        return Err(format!("`{}`: {name} cannot be a name", text()));
    }
    let is_space = |t: &&&str| matches!(**t, "device" | "constant" | "threadgroup" | "thread");
    let space = types.iter().find(is_space).copied();
    let (mark, plain) = match types {
        [plain @ .., mark @ ("*" | "&")] => (*mark, plain),
        plain => ("", plain),
    };
    let ty: Vec<&str> = plain.iter().filter(|t| !is_space(t)).copied().collect();
    if ty.iter().any(|t| !t.bytes().all(is_word)) {
        return Err(format!("`{}`: its type is not a plain one", text()));
    }
    let ty = ty.join(" ");
    let (kind, index) = match (attribute, space, mark) {
        (["[", "[", "buffer", "(", index, ")", "]", "]"], Some(space), mark) => {
            let index = index.parse().map_err(|_| format!("`{}`: {index} is no number", text()))?;
            match (space, mark) {
                ("device", "*") => (Kind::Buffer, Some(index)),
                ("constant", "&") => (Kind::Args, Some(index)),
                _ => return Err(format!("`{}`: a buffer is `device T*` or `constant T&`", text())),
            }
        }
        (["[", "[", attribute, "]", "]"], None, "") => {
            let &(attribute, spatial) = POSITIONS
                .iter()
                .find(|(known, _)| known == attribute)
                .ok_or_else(|| format!("`{}`: the attribute {attribute} is not in use here", text()))?;
            let is_right = ty == "uint" || spatial && matches!(ty.as_str(), "uint2" | "uint3");
            if !is_right {
                return Err(format!("`{}`: {attribute} cannot be a {ty}", text()));
            }
            (Kind::Position(attribute), None)
        }
        _ => return Err(format!("`{}` is neither a buffer nor a position", text())),
    };
    let ty = if kind == Kind::Args { ty.trim_start_matches("const ").to_string() } else { ty };
    Ok((Parameter { ty, name: (*name).into(), kind }, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"#include <metal_stdlib>
using namespace metal;
struct Args { device half* p; int n; };
constant constexpr uint N = 32; // a device of the threadgroup
template <class T> inline float sum(threadgroup const T* p, constant T& c, const thread float& f) { return "thread device"[0]; }
kernel void add(device const half* b0 [[buffer(0)]],
                const device uint4* b1 [[buffer(1)]],
                constant Args& args [[buffer(2)]],
                uint3 g [[threadgroup_position_in_grid]], uint2 all [[threadgroups_per_grid]],
                uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float part[N * 2];
    threadgroup uint last;
    threadgroup float* p = part + 1;
    b1[0] = *(device uint4*)(b0 + 1e-5f);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}
"#;

    #[test]
    fn cuda_text() {
        let expected = r#"
using namespace metal;
struct Args { half* p; int n; };
const constexpr uint N = 32; // a device of the threadgroup
template <class T> inline float sum(const T* p, const T& c, const float& f) { return "thread device"[0]; }
extern "C" __global__ void add(const half* b0, const uint4* b1, const __grid_constant__ Args args) { const uint3 g = tl_threadgroup_position_in_grid(); const uint2 all = uint2(tl_threadgroups_per_grid().x, tl_threadgroups_per_grid().y); const uint lane = tl_thread_index_in_simdgroup();




"#;
        let text = translate(SOURCE, Target::Cuda).unwrap();
        let (head, body) = text.split_once("    __shared__").unwrap();
        assert_eq!(head.trim_end(), expected.trim_end());
        let expected = r#" __align__(16) float part[N*2];
    __shared__ __align__(16) uint last;
    float* p = part + 1;
    b1[0] = *(uint4*)(b0 + 1e-5f);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}
"#;
        assert_eq!(body, expected);
    }

    #[test]
    fn host_text() {
        let text = translate(SOURCE, Target::Host).unwrap();
        let signature = "TL_KERNEL void add(const half* b0, const uint4* b1, const Args& args, const uint3 g, \
                         const uint2 all, const uint lane) {";
        assert!(text.contains(signature), "{text}");
        assert!(text.contains("    TL_THREADGROUP(0, float, part, [N*2]);\n    TL_THREADGROUP(1, uint, last, );\n"));
        let entry = "\nTL_ENTRY(add) { add((const half*)tl->buffers[0], (const uint4*)tl->buffers[1], \
                     *(const Args*)tl->args, tl->threadgroup_position_in_grid, \
                     uint2(tl->threadgroups_per_grid.x, tl->threadgroups_per_grid.y), tl->thread_index_in_simdgroup); }";
        assert!(text.ends_with(entry), "{text}");
    }

    #[test]
    fn lines_stay_where_they_are() {
        for target in [Target::Cuda, Target::Host] {
            let text = translate(SOURCE, target).unwrap();
            let line = |text: &str| text.lines().position(|l| l.contains("p = part + 1")).unwrap();
            assert_eq!(line(&text), line(SOURCE));
        }
    }

    #[test]
    fn what_strays_is_refused() {
        let cases = [
            ("kernel int f() {}", "expected `kernel void NAME(`"),
            ("template <class T> kernel void f() {}", "template"),
            ("kernel void f(device half* a) {}", "`device half * a` has no attribute"),
            ("kernel void f(device half* a [[buffer(1)]]) {}", "parameter a is buffer 1, not 0"),
            ("kernel void f(half* a [[buffer(0)]]) {}", "neither a buffer nor a position"),
            ("kernel void f(constant int* a [[buffer(0)]]) {}", "a buffer is `device T*` or `constant T&`"),
            ("kernel void f(constant A& a [[buffer(0)]], device int* b [[buffer(1)]]) {}", "b comes behind a"),
            ("kernel void f(uint g [[thread_position_in_grid]]) {}", "thread_position_in_grid is not in use here"),
            ("kernel void f(uint3 g [[thread_index_in_simdgroup]]) {}", "cannot be a uint3"),
            ("kernel void f(uint thread [[thread_index_in_simdgroup]]) {}", "thread cannot be a name"),
            ("kernel void f(threadgroup float* t [[threadgroup(0)]]) {}", "neither a buffer nor a position"),
            ("kernel void f(", "no end"),
            ("kernel void f();", "expected a body"),
            ("kernel void f() {", "no end"),
            ("#include <cmath>\n", "only headers of the Metal standard library"),
            ("/* open", "a comment without an end"),
            ("\"open", "a literal without an end"),
        ];
        for (source, reason) in cases {
            let error = translate(source, Target::Cuda).unwrap_err();
            assert!(error.contains(reason), "{source}: {error}");
        }
    }
}
