"""Sentences and names that `make_small_sets.py` puts together. Words in braces are replaced."""

# Entities. Words and punctuation are separated by spaces; each name becomes an entity of its kind.

NAMES = {
    "PRODUCT": {
        "train": [
            "desk lamp", "Nordkap kettle", "garden chair", "Aero 300 vacuum cleaner", "blue rug", "coffee grinder",
            "Luma bedside light", "folding table", "bread maker", "winter duvet", "Halden bookcase", "bath towel set",
            "mirror", "toaster", "rocking chair", "Piccolo hand mixer", "curtain rail", "shoe rack",
        ],
        "validation": ["wall clock", "Fjord tea pot", "office chair", "Vento fan", "mirror", "toaster", "sofa bed"],
    },
    "DATE": {
        "train": [
            "Monday", "last Friday", "3 March", "the 14th of May", "yesterday", "tomorrow", "21 October", "Wednesday",
            "next week", "early December", "Sunday evening", "9 June",
        ],
        "validation": ["Tuesday", "30 August", "the 2nd of July", "yesterday", "next Saturday", "12 January"],
    },
    "ORDER": {"train": ["{number}", "A-{number}", "NL{number}"], "validation": ["{number}", "A-{number}", "K{number}"]},
    "PLACE": {
        "train": [
            "Leeds", "Lille", "12 Mill Lane", "Graz", "the shop in Porto", "Bergen", "5 Station Road", "Utrecht",
            "the depot in Lyon", "Aarhus", "North Street", "Turin",
        ],
        "validation": ["Ghent", "8 Harbour Street", "the shop in Malmö", "Bergen", "Linz", "Park Road"],
    },
    "PERSON": {
        "train": [
            "Maria", "Mr Okafor", "Anna Lindqvist", "Tomás", "Mrs Patel", "Jan de Wit", "Dr Rossi", "Ewa",
            "Samuel Boateng", "Miss Carter",
        ],
        "validation": ["Lucía", "Mr Haddad", "Ingrid Solberg", "Maria", "Mrs Novak", "Peter"],
    },
}  # fmt: skip

ENTITY_TEMPLATES = {
    "train": [
        "Where is my {PRODUCT} ? It was due on {DATE} .",
        "Order {ORDER} says delivered , but nothing came to {PLACE} .",
        "I spoke with {PERSON} on {DATE} and heard nothing since .",
        "Please send the {PRODUCT} to {PLACE} instead of {PLACE} .",
        "The {PRODUCT} arrived broken , and so did the {PRODUCT} .",
        "Can I return the {PRODUCT} that I bought on {DATE} ?",
        "{PERSON} in your shop was very kind to me .",
        "I was charged twice for order {ORDER} .",
        "Your driver left the parcel with {PERSON} in {PLACE} .",
        "Cancel order {ORDER} , please ; I no longer need it .",
        "Is the {PRODUCT} in stock again by {DATE} ?",
        "My refund for {ORDER} should have come on {DATE} .",
        "Thank you , all is well now .",
        "I ordered a {PRODUCT} and got a {PRODUCT} .",
        "Could {PERSON} call me back before {DATE} ?",
        "The parcel has been standing in {PLACE} since {DATE} .",
        "Change the name on order {ORDER} to {PERSON} , please .",
        "Does the {PRODUCT} fit the {PRODUCT} that I have ?",
        "We move to {PLACE} on {DATE} ; can order {ORDER} follow us ?",
        "Nobody answers the phone , and I have been waiting for an hour .",
        "{PERSON} promised me a new {PRODUCT} by {DATE} .",
        "The invoice for {ORDER} shows the wrong address , it must be {PLACE} .",
        "After two weeks the {PRODUCT} stopped working .",
        "How long does delivery to {PLACE} take ?",
    ],
    "validation": [
        "Has the {PRODUCT} left {PLACE} yet ?",
        "I am writing about order {ORDER} , placed on {DATE} .",
        "A lady called {PERSON} told me that the {PRODUCT} comes on {DATE} .",
        "Since {DATE} my {PRODUCT} makes a strange noise .",
        "Nothing has reached {PLACE} , although {ORDER} is marked as sent .",
        "My neighbour {PERSON} can take the parcel on {DATE} .",
        "I would rather have the {PRODUCT} than the {PRODUCT} .",
        "Why do I pay twice for {ORDER} ?",
        "Please tell {PERSON} that everything is fine .",
        "Your page does not load , so I cannot pay .",
    ],
}

# Questions. Each fact is a sentence, the part of it that is asked for, and questions about it; a text holds several.

FACTS = {
    "carrier": ("It was handed to {carrier} in the morning.", "{carrier}"),
    "arrival": ("The parcel is expected on {day}.", "{day}"),
    "depot": ("At the moment it lies at the depot in {place}.", "{place}"),
    "price": ("The customer paid {price} by card.", "{price}"),
    "agent": ("{person} from the support team looks after the case.", "{person}"),
    "colour": ("The article was ordered in {colour}.", "{colour}"),
    "weight": ("The box weighs {weight}.", "{weight}"),
    "warranty": ("The maker gives a warranty of {years}.", "{years}"),
    "reason": ("The first delivery failed because {reason}.", "{reason}"),
    "gift": ("A gift card with the code {code} was added.", "{code}"),
}

QUESTIONS = {
    "carrier": {
        "train": ["Who carries the parcel?", "Which carrier has the box?", "Who was the box handed to?"],
        "validation": ["Which company brings the parcel?", "Who has it been given to?"],
    },
    "arrival": {
        "train": ["When is the parcel expected?", "When will it arrive?", "On which day does it come?"],
        "validation": ["When should the customer be at home?", "What day will the parcel be there?"],
    },
    "depot": {
        "train": ["Where is the parcel?", "In which town is the depot?", "Where does it lie now?"],
        "validation": ["Where can the box be found at the moment?", "Which town is it in?"],
    },
    "price": {
        "train": ["How much did it cost?", "What did the customer pay?", "How much was paid by card?"],
        "validation": ["What was the price?", "Which sum was taken from the card?"],
    },
    "agent": {
        "train": ["Who looks after the case?", "Who from the support team helps?", "Which person is in charge?"],
        "validation": ["Whom can the customer ask?", "Who deals with it?"],
    },
    "colour": {
        "train": ["Which colour was ordered?", "In what colour is the article?", "What colour did they want?"],
        "validation": ["What is the colour of it?", "Which colour should come?"],
    },
    "weight": {
        "train": ["How heavy is the box?", "What does it weigh?", "What is the weight?"],
        "validation": ["How much does the box weigh?", "How heavy is the parcel?"],
    },
    "warranty": {
        "train": ["How long is the warranty?", "For how long does the maker stand by it?", "What warranty is there?"],
        "validation": [
            "My {product} gave up, and I bought it only last spring.",
            "The {product} has a defect; can it be repaired?",
            "How long is it under warranty?",
            "Until when may it be repaired free of charge?",
        ],
    },
    "reason": {
        "train": ["Why did the first delivery fail?", "Why has it not come at first?", "What went wrong?"],
        "validation": ["Why was the parcel not delivered?", "What was the problem with the first try?"],
    },
    "gift": {
        "train": ["What is the code of the gift card?", "Which code was added?", "What code is on the card?"],
        "validation": ["Which code belongs to the gift card?", "What does the customer type in?"],
    },
}

FILLERS = {
    "carrier": ["Northline", "Swift Parcel", "the red van", "Posthorn", "two cyclists", "Bluebird Express"],
    "day": ["Monday", "Tuesday morning", "2 May", "Friday after lunch", "19 November", "the last day of June"],
    "place": ["Leeds", "Ghent", "Turin", "Old Harbour", "Bergen", "Saint-Malo", "Graz"],
    "person": ["Maria", "Mr Okafor", "Ingrid Solberg", "Jan", "Mrs Patel", "Lucía Romero"],
    "colour": ["dark green", "white", "grey with red stripes", "sky blue", "oak", "yellow"],
    "years": ["two years", "five years", "ten years", "eighteen months"],
    "reason": [
        "nobody was at home", "the street was closed", "the label had come off", "the address had no number",
        "the box was too large for the van", "the bell did not work",
    ],
}  # fmt: skip

OPENINGS = [
    "Order {number} is a {product}.",
    "This note is about the {product} of order {number}.",
    "A {product} was sent under the number {number}.",
    "The customer of order {number} wants a {product}.",
]

# Replies: what customers write, and what the shop answers. {product} is the same in a message and in all its replies.

REPLY_TOPICS: dict[str, dict[str, list[str]]] = {
    "late": {
        "train": [
            "Where is my {product}? It should be here by now.",
            "I have waited for the {product} for two weeks.",
            "The tracking of my {product} has not moved for days.",
            "When will the {product} finally come?",
        ],
        "validation": [
            "It is the third week without the {product}.",
            "Any news of the {product}? I stayed at home for nothing.",
            "My {product} was promised for Friday and is not here.",
        ],
        "replies": [
            "We are sorry that your {product} is late; it arrives on {day}.",
            "Your {product} is on its way and should reach you on {day}.",
            "The carrier had a delay. Expect the {product} on {day}.",
        ],
    },
    "broken": {
        "train": [
            "The {product} came in pieces.",
            "There is a crack in the {product} that I unpacked today.",
            "My new {product} arrived damaged, the box was crushed.",
            "The {product} was broken when I opened it.",
        ],
        "validation": [
            "A corner of the {product} was chipped under the wrapping.",
            "The {product} rattles, something in it must have snapped on the way.",
            "I unpacked the {product} and one side is smashed.",
        ],
        "replies": [
            "Please send us a photo of the damage, and we replace the {product}.",
            "We are sorry about the damage. A new {product} leaves us on {day}.",
            "A damaged {product} is exchanged free of charge; keep the box.",
        ],
    },
    "return": {
        "train": [
            "I do not like the {product}; how do I send it back?",
            "Can I return the {product} unused?",
            "The {product} does not suit my room, I want to give it back.",
            "How many days do I have to return a {product}?",
        ],
        "validation": [
            "The {product} is bigger than I thought; may it go back?",
            "I would like to give back a {product} that I have not used.",
            "I changed my mind about the {product} and would like to hand it in again.",
        ],
        "replies": [
            "You may return the {product} within 30 days; the label is in the box.",
            "Print the return label and bring the {product} to any parcel shop.",
            "Send the {product} back unused until {day}, the return is free.",
        ],
    },
    "refund": {
        "train": [
            "I sent the {product} back, but where is my money?",
            "When do I get the refund for the {product}?",
            "You have had the {product} for weeks and I was not paid back.",
            "The refund of my {product} is missing.",
        ],
        "validation": [
            "How long until I see the money for the {product} that I sent back?",
            "Nobody has paid me back for the {product} yet.",
            "The {product} is back with you; my account is still empty.",
        ],
        "replies": [
            "The refund for the {product} was paid out and is on your account by {day}.",
            "We have your {product} and transfer the money on {day}.",
            "Your money for the {product} goes back to the card that you paid with.",
        ],
    },
    "cancel": {
        "train": [
            "Please cancel my order of the {product}.",
            "I ordered the {product} by mistake, stop it please.",
            "Can I still withdraw the order of the {product}?",
            "I no longer want the {product}, do not send it.",
        ],
        "validation": [
            "The {product} is not needed any more, can the order be withdrawn?",
            "Please forget about the {product} that I ordered this morning.",
            "Stop the {product} before it leaves, I clicked too fast.",
        ],
        "replies": [
            "The order of the {product} is cancelled; nothing will be charged.",
            "We have stopped the {product} before it was sent.",
            "Your {product} is cancelled as you asked. You need not do anything more.",
        ],
    },
    "address": {
        "train": [
            "I moved; can the {product} go to my new address?",
            "The address on the order of the {product} is wrong.",
            "Please deliver the {product} to my office instead.",
            "I gave the old street for the {product}.",
        ],
        "validation": [
            "We live elsewhere now, where will the {product} be brought?",
            "I made a mistake in the street when I ordered the {product}.",
            "The {product} should go to my sister's flat, not to mine.",
        ],
        "replies": [
            "The new address for the {product} is noted.",
            "We changed where the {product} is delivered; you get a mail about it.",
            "Tell us street and town, and the {product} goes there.",
        ],
    },
    "stock": {
        "train": [
            "When is the {product} in stock again?",
            "The {product} is sold out; will there be more?",
            "Do you have another {product} in your shop?",
            "Your page says that no {product} is left.",
        ],
        "validation": [
            "The page says sold out, yet I still want a {product}.",
            "Will you get more of the {product}?",
            "Is there any hope that the {product} can be bought again?",
        ],
        "replies": [
            "New ones come in on {day}; then the {product} can be ordered again.",
            "The {product} is sold out for good, but there is a new model.",
            "Leave your mail address, and we tell you when the {product} is back in stock.",
        ],
    },
    "manual": {
        "train": [
            "How do I put the {product} together?",
            "There was no manual with the {product}.",
            "Which screw of the {product} goes where?",
            "I cannot find out how the {product} is assembled.",
        ],
        "validation": [
            "I have all parts of the {product} on the floor and no idea how to begin.",
            "Is there a guide for setting up the {product}?",
            "The sheet on how to build up the {product} is missing.",
        ],
        "replies": [
            "The manual of the {product} is on our page, with pictures of every step.",
            "We send you the instructions for the {product} by mail.",
            "Begin with the long screws; a film shows how the {product} is assembled.",
        ],
    },
    "double": {
        "train": [
            "I was charged twice for the {product}.",
            "My card shows the {product} two times.",
            "Why did I pay double for one {product}?",
            "You took the price of the {product} twice.",
        ],
        "validation": [
            "The {product} was paid for two times by accident.",
            "My bank took the money for the {product} once on Monday and again today.",
            "One {product}, but two payments on my statement.",
        ],
        "replies": [
            "The second payment for the {product} was a mistake and is given back.",
            "One of the two payments for the {product} is only reserved and vanishes by {day}.",
            "We see the double charge for the {product} and correct it today.",
        ],
    },
    "wrong": {
        "train": [
            "I ordered a {product} and got something else.",
            "This is not the {product} that I ordered.",
            "The colour of the {product} is wrong.",
            "In the box there was another article, no {product}.",
        ],
        "validation": [
            "What I unpacked is surely not a {product}.",
            "You sent me something in red, I had asked for a {product} in white.",
            "Instead of the {product} somebody packed a thing that I do not know.",
        ],
        "replies": [
            "We mixed up the boxes. The right {product} leaves us on {day}.",
            "Keep the wrong article until our driver brings the right {product}.",
            "Sorry that another article was packed; the {product} you ordered follows.",
        ],
    },
    "code": {
        "train": [
            "My discount code does not work for the {product}.",
            "The voucher is refused when I buy the {product}.",
            "Can I use two codes for one {product}?",
            "Where do I type in the promo code for the {product}?",
        ],
        "validation": [
            "It says invalid voucher at the till, though the {product} should be cheaper.",
            "How do I use my coupon for the {product}?",
            "The ten per cent that you promised are not taken off the {product}.",
        ],
        "replies": [
            "That code is for first orders only and does not count for the {product}.",
            "Type the code in the last step, then the {product} becomes cheaper.",
            "The voucher has run out; here is a new code for the {product}.",
        ],
    },
    "warranty": {
        "train": [
            "The {product} stopped working after half a year.",
            "Is the {product} still under warranty?",
            "My {product} from last year has a fault, who repairs it?",
            "The {product} makes a noise and then stops.",
        ],
        "validation": ["After some months the {product} does not do anything any more."],
        "replies": [
            "The warranty covers that; send us the {product} and we repair it.",
            "Our workshop repairs the {product} free of charge within two years.",
            "Bring the {product} in with its bill, the warranty still holds.",
        ],
    },
}

PRODUCTS = {
    "train": ["desk lamp", "kettle", "garden chair", "vacuum cleaner", "rug", "coffee grinder", "folding table",
              "bread maker", "bookcase", "mirror", "toaster", "hand mixer", "curtain rail", "shoe rack"],
    "validation": ["wall clock", "tea pot", "office chair", "fan", "sofa bed", "lantern", "stool"],
}  # fmt: skip
