//! Reads a trace (docs/trace-format.md) and prints each tensor: name, dtype, shape, sum of its values.
//!
//!     rustc --edition 2021 -O trace_reader.rs && ./trace_reader FILE
//!
//! Exit status 2, with one line on stderr, for a file that is no trace, damaged, or of another version.

use std::collections::HashMap;
use std::{env, fs, process};

struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    begin: usize, // bytes, from the first byte after the header
    end: usize,
}

/// The part of the header that is not read yet.
struct Header<'a>(&'a [u8]);

const DAMAGED: &str = "the header is damaged";
type Read<T> = Result<T, String>;

impl Header<'_> {
    fn look(&mut self) -> u8 {
        while let [b' ' | b'\n' | b'\t' | b'\r', rest @ ..] = self.0 {
            self.0 = rest;
        }
        *self.0.first().unwrap_or(&0)
    }

    /// Goes past the byte if it comes next.
    fn skip(&mut self, byte: u8) -> bool {
        let found = self.look() == byte;
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Read<()> {
        if self.skip(byte) { Ok(()) } else { Err(DAMAGED.into()) }
    }

    /// A JSON string. `\uXXXX`, which no name in a trace has, becomes '?'.
    fn string(&mut self) -> Read<String> {
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            let (&byte, rest) = self.0.split_first().ok_or(DAMAGED)?;
            self.0 = rest;
            match byte {
                b'"' => return String::from_utf8(text).map_err(|_| DAMAGED.into()),
                b'\\' => {
                    let (&escaped, rest) = self.0.split_first().ok_or(DAMAGED)?;
                    self.0 = rest;
                    text.push(match escaped {
                        b'n' => b'\n',
                        b't' => b'\t',
                        b'u' => {
                            self.0 = self.0.get(4..).ok_or(DAMAGED)?;
                            b'?'
                        }
                        other => other,
                    });
                }
                other => text.push(other),
            }
        }
    }

    fn numbers(&mut self) -> Read<Vec<usize>> {
        self.expect(b'[')?;
        let mut numbers = Vec::new();
        while !self.skip(b']') {
            self.skip(b',');
            self.look();
            let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = self.0.split_at(digits);
            self.0 = rest;
            numbers.push(std::str::from_utf8(number).unwrap().parse().map_err(|_| DAMAGED)?);
        }
        Ok(numbers)
    }

    fn texts(&mut self) -> Read<HashMap<String, String>> {
        let mut texts = HashMap::new();
        self.expect(b'{')?;
        while !self.skip(b'}') {
            self.skip(b',');
            let key = self.string()?;
            self.expect(b':')?;
            texts.insert(key, self.string()?);
        }
        Ok(texts)
    }

    fn tensor(&mut self) -> Read<Tensor> {
        let mut tensor = Tensor { dtype: String::new(), shape: vec![], begin: 0, end: 0 };
        self.expect(b'{')?;
        while !self.skip(b'}') {
            self.skip(b',');
            let key = self.string()?;
            self.expect(b':')?;
            match key.as_str() {
                "dtype" => tensor.dtype = self.string()?,
                "shape" => tensor.shape = self.numbers()?,
                "data_offsets" => match self.numbers()?[..] {
                    [begin, end] => (tensor.begin, tensor.end) = (begin, end),
                    _ => return Err(DAMAGED.into()),
                },
                _ => return Err(DAMAGED.into()),
            }
        }
        Ok(tensor)
    }
}

fn sum(dtype: &str, data: &[u8]) -> Read<f64> {
    Ok(match dtype {
        "F64" => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).sum(),
        "F32" => data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).sum(),
        "I64" => data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).sum(),
        "BOOL" => data.iter().map(|&b| f64::from(b)).sum(),
        _ => return Err("a tensor has a dtype that no trace has".into()),
    })
}

fn print_trace(path: &str) -> Read<()> {
    let file = fs::read(path).map_err(|error| error.to_string())?;
    let truncated = "the file is truncated or no trace";
    let size = u64::from_le_bytes(file.get(..8).ok_or(truncated)?.try_into().unwrap()) as usize;
    let mut header = Header(file.get(8..size.saturating_add(8)).ok_or(truncated)?);
    let data = &file[8 + size..];
    let (mut tensors, mut metadata) = (HashMap::new(), HashMap::new());
    header.expect(b'{')?;
    while !header.skip(b'}') {
        header.skip(b',');
        let name = header.string()?;
        header.expect(b':')?;
        if name == "__metadata__" {
            metadata = header.texts()?;
        } else {
            tensors.insert(name, header.tensor()?);
        }
    }
    if metadata.get("format").map(String::as_str) != Some("numpygpt.trace") {
        return Err("the file is no trace".into());
    }
    if metadata.get("version").map(String::as_str) != Some("1") {
        return Err("the trace is of another version; this reader knows version 1".into());
    }
    for name in metadata.get("order").ok_or(DAMAGED)?.split('\n') {
        let tensor = tensors.get(name).ok_or("a tensor that the order names is missing")?;
        let bytes = data.get(tensor.begin..tensor.end).ok_or(truncated)?;
        println!("{name} {} {:?} {:.17e}", tensor.dtype, tensor.shape, sum(&tensor.dtype, bytes)?);
    }
    Ok(())
}

fn main() {
    let path = env::args().nth(1).unwrap_or_default();
    if let Err(why) = print_trace(&path) {
        eprintln!("trace_reader: {why}");
        process::exit(2);
    }
}
