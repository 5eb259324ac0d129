use super::{
    buffer::Buffer,
    json::{Children, Node, Shape},
    place::Place,
};

const NULL: u8 = b'0';
const FALSE: u8 = b'f';
const TRUE: u8 = b't';
const NUMBER: u8 = b'n';
const STRING: u8 = b's';
const ARRAY: u8 = b'[';
const OBJECT: u8 = b'{';
/// An object whose members are numbered.
const SCHEMA: u8 = b'<';
const MEMBER: u8 = b':';
// How many members are dropped is known at the end of an object, so a mark ends it, not a count at the start.
const END: u8 = b'}';

/// Appends a value: the same bytes for all bodies that ask for the same answer.
pub(super) fn write(value: Node<'_>, place: Place, out: &mut Buffer) {
    match value.shape() {
        Shape::Null => out.tag(NULL),
        Shape::Bool(value) => out.tag(if value { TRUE } else { FALSE }),
        Shape::Number(number) => {
            out.tag(NUMBER);
            number.write(out);
        }
        Shape::String(text) => write_text(text, place, out),
        Shape::Array(children) => {
            out.tag(ARRAY);
            for element in children.values() {
                write(element, place.element(), out);
            }
            out.tag(END);
        }
        Shape::Object(members) if place == Place::Schema => write_schema(members, out),
        Shape::Object(members) => write_object(members, place.of(value), None, out),
    }
}

/// Appends an object as [`write()`] does, but for one member.
pub(super) fn write_without(object: Node<'_>, member: &str, place: Place, out: &mut Buffer) {
    match object.shape() {
        Shape::Object(members) => write_object(members, place.of(object), Some(member), out),
        _ => write(object, place, out),
    }
}

fn write_object(members: Children<'_>, place: Place, left_out: Option<&str>, out: &mut Buffer) {
    out.tag(OBJECT);
    for (name, value) in members.members() {
        if left_out != Some(name)
            && let Some(place) = place.member(name, value)
        {
            write_name(name, out);
            write(value, place, out);
        }
    }
    out.tag(END);
}

/// Appends an object whose members have an order: they are sorted as all are, and say where they stand.
fn write_schema(members: Children<'_>, out: &mut Buffer) {
    out.tag(SCHEMA);
    for (number, name, value) in members.numbered_members() {
        write_name(name, out);
        out.number(number.into());
        write(value, Place::Schema, out);
    }
    out.tag(END);
}

/// Appends a text, or what it is short for.
fn write_text(text: &str, place: Place, out: &mut Buffer) {
    if place == Place::ResponsesInput {
        out.tag(ARRAY);
        out.tag(OBJECT);
        write_name("content", out);
        write_text(text, Place::ResponsesContent, out);
        write_name("role", out);
        write_string("user", out);
        out.tag(END);
        out.tag(END);
    } else if let Some(kind) = place.part_type() {
        out.tag(ARRAY);
        out.tag(OBJECT);
        write_name("text", out);
        write_string(text, out);
        write_name("type", out);
        write_string(kind, out);
        out.tag(END);
        out.tag(END);
    } else {
        write_string(text, out);
    }
}

fn write_name(name: &str, out: &mut Buffer) {
    out.tag(MEMBER);
    out.text(name);
}

fn write_string(text: &str, out: &mut Buffer) {
    out.tag(STRING);
    out.text(text);
}
