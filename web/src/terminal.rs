//! The HTML of what a hook printed for a terminal, with its colours.

use ansi_to_html::{Converter, Esc};
use shared::words::terminal::{PlainText, plain};

/// Returns escaped HTML that keeps the colours, for a dark background.
///
/// The styles are inline and name no variable: mail programs know neither classes nor `var()`.
pub(crate) fn html(text: &str) -> String {
    Converter::new()
        .four_bit_var_prefix(Some(NEVER_IN_ESCAPED_TEXT.to_owned()))
        .convert(&only_colours(text))
        .map_or_else(
            |_| Esc(plain(text)).to_string(),
            |html| with_our_colours(&html),
        )
}

/// Marks the converter's variables. A quotation mark of the log itself is `&quot;` by then.
const NEVER_IN_ESCAPED_TEXT: &str = "\"";

/// Returns the text with its colours and styles (`ESC [ … m`) but no other escape sequence: the converter
/// shows those it does not know, such as `ESC [?25l`, which hides the cursor.
fn only_colours(text: &str) -> String {
    let mut plain = PlainText::default();
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\x1b[") {
        let sequence = &rest[start..];
        let style = style_length(sequence);
        let (passed, after) = rest.split_at(start + style.unwrap_or("\x1b[".len()));
        // The sequence passes as well: it may end another one that was left open.
        kept.push_str(&plain.push(passed.as_bytes()));
        if let Some(length) = style {
            kept.push_str(&with_all_parameters(&sequence[..length]));
        }
        rest = after;
    }
    kept + &plain.push(rest.as_bytes())
}

/// Returns the length of the style at the beginning of `sequence`, if it is one.
fn style_length(sequence: &str) -> Option<usize> {
    let parameter = |byte: &u8| byte.is_ascii_digit() || *byte == b';';
    let length = "\x1b[".len()
        + sequence
            .bytes()
            .skip(2)
            .take_while(|b| parameter(b))
            .count();
    (sequence.as_bytes().get(length) == Some(&b'm')).then_some(length + 1)
}

/// Returns a style whose empty parameters are the zeros that they stand for: the converter knows no empty ones.
fn with_all_parameters(style: &str) -> String {
    let parameters = style.trim_start_matches("\x1b[").trim_end_matches('m');
    let parameters = parameters.split(';').map(|number| match number {
        "" => "0",
        number => number,
    });
    format!("\x1b[{}m", parameters.collect::<Vec<_>>().join(";"))
}

/// Puts a colour in the place of each `var(--"name,#default)`.
fn with_our_colours(html: &str) -> String {
    let variable = format!("var(--{NEVER_IN_ESCAPED_TEXT}");
    let mut parts = html.split(&variable);
    let mut coloured = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (variable, after) = part.split_once(')').unwrap_or((part, ""));
        let (name, _) = variable.split_once(',').unwrap_or((variable, ""));
        coloured.push_str(colour(name));
        coloured.push_str(after);
    }
    coloured
}

/// Returns one of a terminal's sixteen colours. Each can be read on the dark background of the log,
/// and is dark enough to stand behind white text.
fn colour(name: &str) -> &'static str {
    match name {
        "black" => "#484f58",
        "red" => "#e5534b",
        "green" => "#3fb950",
        "yellow" => "#d29922",
        "blue" => "#539bf5",
        "magenta" => "#b083f0",
        "cyan" => "#39c5cf",
        "white" => "#c9d1d9",
        "bright-black" => "#8b949e",
        "bright-red" => "#ff938a",
        "bright-green" => "#7ee787",
        "bright-yellow" => "#f2cc60",
        "bright-blue" => "#96d0ff",
        "bright-magenta" => "#dcbdfb",
        "bright-cyan" => "#76e3ea",
        _ => "#ffffff",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_keeps_the_colours_and_escapes_the_rest() {
        insta::assert_snapshot!(
            html("\x1b[1m<b>\x1b[0m \x1b[31mred & \x1b[97;44mon blue\x1b[0m \x1b[38;5;208m'8 bit'\x1b[m"),
            @r"<b>&lt;b&gt;</b> <span style='color:#e5534b'>red &amp; <span style='color:#ffffff'><span style='background:#539bf5'>on blue</span></span></span> <span style='color:#ff8700'>&#39;8 bit&#39;</span>"
        );
    }

    #[test]
    fn html_shows_nothing_of_other_sequences() {
        let text = "\x1b[?25l\x1b[2K\x1b[1A\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\\x1b[4:3m\x1b[38:2::1:2:3m.\x1b(B";
        assert_eq!(html(text), "link.");
        assert_eq!(
            html("\x1b]0;no end\x1b[32mgreen"),
            "<span style='color:#3fb950'>green</span>"
        );
    }

    #[test]
    fn empty_parameter_of_a_style_is_a_zero() {
        assert_eq!(html("\x1b[;;mplain"), "plain");
        assert_eq!(
            html("\x1b[1mbold\x1b[;32mgreen\x1b[m."),
            "<b>bold</b><span style='color:#3fb950'>green</span>."
        );
    }

    #[test]
    fn html_without_colours_stands_in_for_colours_that_nobody_knows() {
        assert_eq!(
            html("\x1b[31mred\x1b[99999m & <no>"),
            "red &amp; &lt;no&gt;"
        );
    }

    #[test]
    fn a_log_that_names_the_variables_is_not_changed() {
        assert_eq!(html("var(--\"red,#a00)"), "var(--&quot;red,#a00)");
    }
}
