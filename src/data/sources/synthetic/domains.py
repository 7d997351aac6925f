"""The API domains of the synthetic corpus: tools, how people ask for them, what they return.

A phrasing is an imperative clause. `{parameter}` is replaced by the value; a part in square brackets can be left out,
which is how a request with a missing parameter is made. The last phrasing of each tool is never used for training.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticTool:
    """A tool of a synthetic domain.

    Attributes:
        name: as in the prompt.
        description: one sentence.
        parameters: name to kind of value (see `synthetic_values`).
        phrasings: imperative clauses that ask for it; the last is held out from training.
        returns: what it reports, name to kind of value.
        answer: how the assistant words the result.
        follow_up: how a user asks for it after an earlier call returned its first parameter, or None.
    """

    name: str
    description: str
    parameters: dict[str, str]
    phrasings: tuple[str, ...]
    returns: dict[str, str]
    answer: str
    follow_up: tuple[str, ...] = ()


def _tool(
    name: str,
    description: str,
    parameters: str,
    phrasings: tuple[str, ...],
    returns: str,
    answer: str,
    follow_up: tuple[str, ...] = (),
) -> SyntheticTool:
    def kinds(text: str) -> dict[str, str]:
        return {key: kind for key, kind in (item.split(":") for item in text.split())}

    return SyntheticTool(name, description, kinds(parameters), phrasings, kinds(returns), answer, follow_up)


TRAINING_DOMAINS: dict[str, tuple[SyntheticTool, ...]] = {
    "weather": (
        _tool(
            "get_weather",
            "Weather forecast for a city.",
            "city:name day:day",
            (
                "check the weather in {city}[ on {day}]",
                "tell me the forecast for {city}[ on {day}]",
                "see how the weather will be in {city}[ on {day}]",
            ),
            "sky:sky degrees:small",
            "It will be {sky} with {degrees} degrees.",
        ),
        _tool(
            "set_storm_alert",
            "Send a message before a storm.",
            "city:name hours:small",
            (
                "set a storm alert for {city}[ with {hours} hours notice]",
                "alert me about storms in {city}[ {hours} hours ahead]",
                "warn me of a storm in {city}[ {hours} hours before]",
            ),
            "alert_id:code",
            "The alert is {alert_id}.",
        ),
    ),
    "restaurants": (
        _tool(
            "book_table",
            "Book a table at a restaurant.",
            "restaurant:name guests:small time:time",
            (
                "book a table at {restaurant}[ for {guests} people][ at {time}]",
                "reserve a table for {guests} at {restaurant}[ at {time}]",
                "get us {guests} seats at {restaurant}[ for {time}]",
            ),
            "booking_id:code",
            "The booking is {booking_id}.",
        ),
        _tool(
            "cancel_table",
            "Cancel a booking of a table.",
            "booking_id:code",
            (
                "cancel the table booking {booking_id}",
                "call off table reservation {booking_id}",
                "drop my table {booking_id}",
            ),
            "state:state",
            "That is {state}.",
            ("cancel that table", "call off that booking"),
        ),
    ),
    "flights": (
        _tool(
            "search_flights",
            "Find flights between two cities.",
            "origin:name destination:name",
            (
                "find flights from {origin} to {destination}",
                "search for a flight to {destination} from {origin}",
                "look for flights leaving {origin} for {destination}",
            ),
            "flight_id:code price:amount",
            "Flight {flight_id} costs {price}.",
        ),
        _tool(
            "book_flight",
            "Book a flight for a passenger.",
            "flight_id:code passenger:name",
            (
                "book flight {flight_id}[ for {passenger}]",
                "buy a seat on flight {flight_id}[ for {passenger}]",
                "put {passenger} on flight {flight_id}",
            ),
            "ticket:code",
            "The ticket is {ticket}.",
            ("book that flight for {passenger}", "buy that flight for {passenger}"),
        ),
    ),
    "hotels": (
        _tool(
            "find_hotel",
            "Find a hotel in a city.",
            "city:name nights:small",
            (
                "find a hotel in {city}[ for {nights} nights]",
                "look up a hotel in {city}[ for {nights} nights]",
                "get me {nights} nights in a hotel in {city}",
            ),
            "hotel_id:code",
            "Hotel {hotel_id} has a room.",
        ),
        _tool(
            "rate_hotel",
            "Leave stars for a hotel.",
            "hotel_id:code stars:small",
            (
                "rate hotel {hotel_id}[ with {stars} stars]",
                "give hotel {hotel_id} {stars} stars",
                "leave {stars} stars for hotel {hotel_id}",
            ),
            "state:state",
            "That is {state}.",
            ("rate that hotel with {stars} stars", "give that hotel {stars} stars"),
        ),
    ),
    "calendar": (
        _tool(
            "add_event",
            "Add an event to the calendar.",
            "title:name day:day time:time",
            (
                "add the event {title}[ on {day}][ at {time}]",
                "put {title} in my calendar[ on {day}][ at {time}]",
                "schedule {title}[ for {day}][ at {time}]",
            ),
            "event_id:code",
            "The event is {event_id}.",
        ),
        _tool(
            "delete_event",
            "Delete an event of the calendar.",
            "event_id:code",
            ("delete the event {event_id}", "remove event {event_id} from my calendar", "erase event {event_id}"),
            "state:state",
            "That is {state}.",
            ("delete that event", "remove it from my calendar"),
        ),
    ),
    "banking": (
        _tool(
            "transfer_money",
            "Send money to a person.",
            "recipient:name amount:amount",
            (
                "send {amount} dollars to {recipient}",
                "transfer {amount} to {recipient}",
                "pay {recipient} {amount} dollars",
            ),
            "payment_id:code",
            "The payment is {payment_id}.",
        ),
        _tool(
            "get_balance",
            "Balance of an account.",
            "account:code",
            (
                "show the balance of account {account}",
                "check how much is on account {account}",
                "see what account {account} holds",
            ),
            "balance:amount",
            "The balance is {balance}.",
        ),
    ),
    "music": (
        _tool(
            "play_song",
            "Play a song.",
            "song:name artist:name",
            ("play {song}[ by {artist}]", "put on {song}[ by {artist}]", "start the song {song}[ by {artist}]"),
            "state:state",
            "That is {state}.",
        ),
        _tool(
            "create_playlist",
            "Create an empty playlist.",
            "title:name",
            ("create a playlist named {title}", "make a new playlist {title}", "start a playlist called {title}"),
            "playlist_id:code",
            "The playlist is {playlist_id}.",
        ),
    ),
    "home": (
        _tool(
            "set_temperature",
            "Set the temperature of a room.",
            "room:name degrees:small",
            (
                "set the temperature in {room}[ to {degrees} degrees]",
                "heat {room}[ to {degrees} degrees]",
                "bring {room}[ to {degrees} degrees]",
            ),
            "state:state",
            "That is {state}.",
        ),
        _tool(
            "switch_light",
            "Switch the light of a room.",
            "room:name state:switch",
            (
                "switch the light in {room} {state}",
                "turn {state} the light in {room}",
                "turn the lamp in {room} {state}",
            ),
            "state:state",
            "That is {state}.",
        ),
    ),
    "shopping": (
        _tool(
            "search_product",
            "Search the shop.",
            "product:name limit:amount",
            (
                "search the shop for {product}[ below {limit} dollars]",
                "find {product} in the shop[ below {limit}]",
                "look for {product} to buy[ under {limit} dollars]",
            ),
            "product_id:code",
            "I found product {product_id}.",
        ),
        _tool(
            "add_to_cart",
            "Put a product into the cart.",
            "product_id:code quantity:small",
            (
                "add {quantity} of product {product_id} to the cart",
                "put {quantity} pieces of {product_id} in my cart",
                "place {quantity} times {product_id} in the cart",
            ),
            "state:state",
            "That is {state}.",
            ("add {quantity} of that product to the cart", "put {quantity} of it in my cart"),
        ),
    ),
    "navigation": (
        _tool(
            "get_route",
            "Route between two places.",
            "start:name goal:name mode:mode",
            (
                "show the route from {start} to {goal}[ by {mode}]",
                "plan a way from {start} to {goal}[ by {mode}]",
                "guide me from {start} to {goal}[ by {mode}]",
            ),
            "route_id:code minutes:small",
            "Route {route_id} takes {minutes} minutes.",
        ),
        _tool(
            "share_route",
            "Send a route to a person.",
            "route_id:code person:name",
            (
                "share route {route_id} with {person}",
                "send route {route_id} to {person}",
                "let {person} have route {route_id}",
            ),
            "state:state",
            "That is {state}.",
            ("share that route with {person}", "send it to {person}"),
        ),
    ),
    "stocks": (
        _tool(
            "get_price",
            "Price of a stock.",
            "company:name",
            (
                "show the stock price of {company}",
                "check what a share of {company} costs",
                "quote the share price of {company}",
            ),
            "price:amount",
            "A share costs {price}.",
        ),
        _tool(
            "buy_shares",
            "Buy shares of a company.",
            "company:name shares:small",
            (
                "buy {shares} shares of {company}",
                "get {shares} shares in {company}",
                "purchase {shares} shares of {company}",
            ),
            "order_id:code",
            "The order is {order_id}.",
        ),
    ),
    "messages": (
        _tool(
            "call_person",
            "Call a person by phone.",
            "person:name time:time",
            ("call {person}[ at {time}]", "phone {person}[ at {time}]", "ring {person}[ at {time}]"),
            "state:state",
            "That is {state}.",
        ),
        _tool(
            "find_contact",
            "Look up a contact.",
            "person:name",
            (
                "find the contact of {person}",
                "look up the number of {person}",
                "get me the phone number of {person}",
            ),
            "contact_id:code",
            "The contact is {contact_id}.",
        ),
    ),
    "library": (
        _tool(
            "find_book",
            "Find a book in the library.",
            "title:name author:name",
            (
                "find the book {title}[ by {author}]",
                "search the library for {title}[ by {author}]",
                "locate the book {title}[ by {author}]",
            ),
            "book_id:code",
            "The book is {book_id}.",
        ),
        _tool(
            "borrow_book",
            "Borrow a book.",
            "book_id:code weeks:small",
            (
                "borrow book {book_id}[ for {weeks} weeks]",
                "lend me book {book_id}[ for {weeks} weeks]",
                "take out book {book_id}[ for {weeks} weeks]",
            ),
            "state:state",
            "That is {state}.",
            ("borrow that book for {weeks} weeks", "lend it to me for {weeks} weeks"),
        ),
    ),
    "health": (
        _tool(
            "log_run",
            "Log a run.",
            "distance:small day:day",
            (
                "log a run of {distance} miles[ on {day}]",
                "note a run of {distance} miles[ on {day}]",
                "record that I ran {distance} miles[ on {day}]",
            ),
            "run_id:code",
            "The run is {run_id}.",
        ),
        _tool(
            "see_doctor",
            "Make an appointment with a doctor.",
            "doctor:name day:day",
            (
                "make an appointment with doctor {doctor}[ on {day}]",
                "let me see doctor {doctor}[ on {day}]",
                "book a visit to doctor {doctor}[ on {day}]",
            ),
            "visit_id:code",
            "The visit is {visit_id}.",
        ),
    ),
}

UNSEEN_DOMAINS: dict[str, tuple[SyntheticTool, ...]] = {
    "taxis": (
        _tool(
            "order_taxi",
            "Order a taxi.",
            "pickup:name target:name",
            ("order a taxi from {pickup} to {target}", "bring me by taxi from {pickup} to {target}"),
            "taxi_id:code",
            "The taxi is {taxi_id}.",
        ),
        _tool(
            "cancel_taxi",
            "Cancel a taxi.",
            "taxi_id:code",
            ("cancel taxi {taxi_id}", "send taxi {taxi_id} away"),
            "state:state",
            "That is {state}.",
            ("cancel that taxi",),
        ),
    ),
    "garden": (
        _tool(
            "water_plants",
            "Water the plants of a garden.",
            "garden:name minutes:small",
            ("water the plants in {garden}[ for {minutes} minutes]", "sprinkle {garden}[ for {minutes} minutes]"),
            "state:state",
            "That is {state}.",
        ),
        _tool(
            "order_seeds",
            "Order seeds.",
            "plant:name packs:small",
            ("order {packs} packs of {plant} seeds", "get {packs} packs of seeds of {plant}"),
            "order_id:code",
            "The order is {order_id}.",
        ),
    ),
    "museum": (
        _tool(
            "buy_ticket",
            "Buy a ticket for a museum.",
            "museum:name visitors:small",
            ("buy tickets for {museum}[ for {visitors} visitors]", "let {visitors} of us into {museum}"),
            "ticket_id:code",
            "The ticket is {ticket_id}.",
        ),
        _tool(
            "find_painting",
            "Find where a painting hangs.",
            "painter:name painting:name",
            ("find the painting {painting}[ by {painter}]", "show where {painting}[ by {painter}] hangs"),
            "hall:small",
            "It hangs in hall {hall}.",
        ),
    ),
    "repairs": (
        _tool(
            "request_repair",
            "Ask for a repair.",
            "device:name day:day",
            ("request a repair of {device}[ on {day}]", "have {device} fixed[ on {day}]"),
            "repair_id:code",
            "The repair is {repair_id}.",
        ),
        _tool(
            "track_repair",
            "See how a repair goes.",
            "repair_id:code",
            ("track repair {repair_id}", "see how repair {repair_id} goes"),
            "state:state",
            "That is {state}.",
            ("track that repair",),
        ),
    ),
}
