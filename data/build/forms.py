"""The sentence forms of a customer's message, by what they say and in which register.

Placeholders: ``{name} {item} {colour} {day} {city}`` and ``{a}`` for "a" or "an" before what follows.
Every eighth form of a list is kept for the harder half of the test (`seen_and_unseen`): neither the
training split nor the pretraining corpus has it.
"""

from __future__ import annotations

GREETINGS = {
    "polite": [
        "Dear team,", "Good morning,", "Dear sir or madam,", "Hello there,", "Good afternoon,",
        "Dear support desk,", "Greetings,", "Good evening,", "To whom it may concern,",
        "Hello and good day,", "Dear customer service,", "Kind greetings,",
    ],
    "curt": ["Hi.", "Hello.", "Right.", "Support,", "Listen.", "Team,", "Look here.", "Attention."],
    "rambling": [
        "Hello, I hope you are all well and that the weather is kinder to you than to us.",
        "Hi there, me again, or perhaps not again, I lose track of these things.",
        "Good day to whoever opens this, I know you must have a full inbox.",
        "Hello, sorry in advance for the long letter, I never learned to be brief.",
        "Dear all, I have been meaning to write since breakfast and now it is nearly supper.",
        "Hi, where do I begin, it has been one of those weeks.",
        "Hello friends, my neighbour said I should write to you, so here I am.",
        "Good day, my daughter usually does this for me, but she is away.",
    ],
}  # fmt: skip

# Who writes, with the town.
WHO_AND_WHERE = [
    "This is {name} from {city}.", "My name is {name} and I live in {city}.",
    "I am {name}, writing from {city}.", "{name} here, from {city}.",
    "{name} from {city} again.", "It is {name} in {city}.",
    "You may remember me, {name} from {city}.", "I am called {name} and my home is in {city}.",
    "Name: {name}. Town: {city}.", "My name is {name}, and your van comes to {city}.",
    "I go by {name} and I am based in {city}.", "{name} of {city} speaking.",
    "For your files, I am {name} and the address is in {city}.", "I am {name} and I moved to {city}.",
    "The account is under {name}, {city}.", "Customer {name}, delivery to {city}.",
]  # fmt: skip

WHO = [
    "This is {name}.", "My name is {name}.", "I am {name}.", "{name} here.", "It is {name} writing.",
    "The account is in the name of {name}.", "You have me on file as {name}.",
    "I ordered under the name {name}.", "My friends call me {name}.", "{name} speaking.",
    "Please look under {name}.", "The order is for {name}.", "I signed up as {name}.",
    "The parcel was meant for {name}.", "Name is {name}.", "Customer name: {name}.",
]  # fmt: skip

WHERE = [
    "I live in {city}.", "It was sent to {city}.", "I am in {city}.", "The address is in {city}.",
    "My flat is in {city}.", "The parcel went to {city}.", "We are in {city}, near the station.",
    "Delivery was to {city}.", "I am writing from {city}.", "Your driver knows the way to {city}.",
    "It had to come all the way to {city}.", "Our house is in {city}.", "I had it shipped to {city}.",
    "The label says {city}.", "My office is in {city}.", "Home is {city}, by the way.",
]  # fmt: skip

SIGNATURES = [
    "Regards, {name}", "Thank you, {name}", "Best wishes, {name}", "Yours, {name}", "- {name}",
    "Kind regards, {name}", "Sincerely, {name}", "Cheers, {name}", "Many thanks, {name}", "{name}",
    "Yours truly, {name}", "Warm regards, {name}", "Signed, {name}", "All the best, {name}",
    "Greetings, {name}", "Waiting to hear from you, {name}",
]  # fmt: skip

SIGNATURES_WITH_TOWN = [
    "Regards, {name}, {city}", "{name} ({city})", "Yours, {name} from {city}", "- {name}, {city}",
    "Best wishes from {city}, {name}", "Thanks, {name} in {city}", "Greetings from {city}, {name}",
    "Sincerely, {name} of {city}",
]  # fmt: skip

# What was bought and when: each names the item, the colour and the day.
ORDERS = {
    "polite": [
        "On {day} I ordered {a} {colour} {item} from your shop.",
        "I bought {a} {colour} {item} from you on {day}.",
        "Last {day} I placed an order for {a} {item} in {colour}.",
        "I am writing about the {colour} {item} that I ordered on {day}.",
        "My order of {day} was for {a} {colour} {item}.",
        "I would like to report a problem with {a} {colour} {item} bought on {day}.",
        "May I ask for your help with the {item} in {colour} from my order of {day}?",
        "On {day} you kindly sent me {a} {colour} {item}.",
        "I chose {a} {item}, colour {colour}, and paid for it on {day}.",
        "It concerns the {colour} {item} which I purchased on {day}.",
        "As a gift I ordered {a} {colour} {item} on {day}.",
        "I have a question about my {item} in {colour}, ordered on {day}.",
        "Your website took my order for {a} {colour} {item} on {day}.",
        "I was pleased to find {a} {colour} {item} in your catalogue and ordered it on {day}.",
        "My invoice of {day} lists {a} {item} in {colour}.",
        "The order I made on {day} contained {a} {colour} {item}.",
    ],
    "curt": [
        "{colour} {item}, ordered {day}.", "Order from {day}: {item}, {colour}.",
        "Bought {a} {colour} {item} on {day}.", "It is about my {colour} {item} from {day}.",
        "{day}, one {colour} {item}.", "One {item} in {colour}. Paid on {day}.",
        "I ordered {a} {item} ({colour}) on {day}.", "The {colour} {item} from {day}.",
        "Item: {item}. Colour: {colour}. Ordered: {day}.", "My {item}, the {colour} one, from {day}.",
        "Subject: {colour} {item}, bought {day}.", "Got {a} {colour} {item} from you {day}.",
        "Re {item} in {colour}, order of {day}.", "{day} order. {item}. {colour}.",
        "About that {colour} {item} of {day}.", "Purchase: {colour} {item}, {day}.",
    ],
    "rambling": [
        "So on {day}, just after lunch, I sat down and ordered {a} {colour} {item}.",
        "My aunt always wanted {a} {item}, and in {colour} too, so on {day} I got her one.",
        "I had looked everywhere for {a} {colour} {item} before I found yours on {day}.",
        "It was {day}, I remember because it rained, and I ordered the {item} in {colour}.",
        "We needed {a} {item} for the spare room, and {colour} goes with the walls, so I bought it on {day}.",
        "You will see in your books that on {day} I bought {a} {item}, the {colour} one with the nice finish.",
        "After much talk at home we settled on {colour}, and on {day} the {item} was ordered.",
        "I told my sister on {day} that I would buy {a} {colour} {item}, and I did that very day.",
        "Now, the thing I bought is {a} {item}, in {colour}, and the day was {day}.",
        "I am not one to shop online, but {day} was quiet and the {colour} {item} looked so good.",
        "There I was on {day} with some money left, and {a} {colour} {item} was just what we lacked.",
        "My old one gave up, so {day} I treated myself to {a} {item} in {colour}.",
        "Somebody at work has the same {item} in {colour}, which is why I ordered mine on {day}.",
        "For the wedding I picked {a} {colour} {item}, that must have been {day}.",
        "It took me until {day} to make up my mind, and then it was the {colour} {item} after all.",
        "You had {a} {item} on offer on {day}, and as {colour} is my favourite I took it.",
    ],
}  # fmt: skip

PROBLEM_FORMS = {
    "broken": [
        "It arrived broken.", "It was in pieces when I opened the box.", "It came cracked in two.",
        "The parcel rattled and the thing inside was smashed.", "It is broken right across the middle.",
        "I found it shattered.", "It must have been dropped, because it is broken.",
        "One side had snapped off on the way.", "It was smashed to bits.", "It is cracked all over.",
        "When I unpacked it, it fell apart.", "The box was crushed and so was what was in it.",
        "It got here in two halves.", "It broke before I could even use it.",
        "There is a big crack through it.", "It is damaged beyond repair.",
    ],
    "faulty": [
        "It does not work.", "It stopped working after an hour.", "It will not switch on.",
        "It worked once and never again.", "It is faulty.", "Nothing happens when I try to use it.",
        "It keeps failing.", "It gave up on the first evening.", "It makes a noise and then stops.",
        "It has never worked properly.", "It is dead.", "I cannot get it to do anything.",
        "It quits after a minute.", "There is a fault in it somewhere.", "It refuses to start.",
        "It simply does not do its job.",
    ],
    "late": [
        "It came two weeks late.", "It arrived long after the promised date.",
        "It took a month to get here.", "The delivery was far too late.", "It was very late.",
        "It came days after the party it was for.", "It reached me much later than you said.",
        "I had to wait ages for it.", "It turned up late.", "It was ten days overdue.",
        "By the time it came, I no longer needed it.", "The courier brought it a week behind time.",
        "It was delayed again and again before it came.", "It came after the holiday, which is too late.",
        "You said two days and it took twenty.", "It did come, but far behind schedule.",
    ],
    "lost": [
        "It never arrived.", "It has not come.", "Nothing was delivered.", "The parcel is lost.",
        "I am still waiting and there is no trace of it.", "It seems to have vanished on the way.",
        "The courier says it is lost.", "It got lost in the post.", "I never received it.",
        "No parcel has reached me at all.", "Tracking says delivered, but I have got nothing.",
        "It disappeared somewhere between you and me.", "There has been no delivery whatsoever.",
        "The driver cannot find it any more.", "It never turned up.", "My parcel is nowhere to be found.",
    ],
    "missing part": [
        "A part is missing.", "The box did not hold all the parts.", "There is a piece missing.",
        "The screws were not in the box.", "One part was left out.", "It came without its lid.",
        "The instructions list a part that is not there.", "It lacks a handle.",
        "I counted the parts and there is one too few.", "The small bag of parts was not included.",
        "Something is missing from the set.", "It came incomplete.", "Half of the fittings are missing.",
        "You forgot to pack one of the parts.", "The cable that belongs to it is not there.",
        "I cannot put it together, since a piece is not there.",
    ],
    "overcharged": [
        "I was charged twice.", "You took the money two times.", "I paid more than the price shown.",
        "My card was billed twice for it.", "The bill is too high.", "You charged me too much.",
        "The amount on my statement is wrong, you took too much.", "I see two payments for one order.",
        "The discount was not taken off.", "I was billed for two and got one.",
        "It cost me double.", "The price on the invoice is higher than on the site.",
        "You billed me for shipping that was meant to be free.", "My bank shows the charge twice over.",
        "I have been overcharged.", "I was asked to pay more than we agreed.",
    ],
    "scratched": [
        "It has scratches.", "There is a long scratch on it.", "It is scratched on one side.",
        "The surface is full of scratches.", "It came with a nasty scratch.", "It is scratched all over.",
        "The front is scuffed and scratched.", "I found scratch marks on it.",
        "It works, but it is badly scratched.", "There are marks and scratches everywhere.",
        "Someone scratched it before packing.", "A deep scratch runs down the back.",
        "It has been scraped along the edge.", "The finish is scratched.", "It looks used, with scratches.",
        "You can see a scratch from across the room.",
    ],
    "wrong colour": [
        "It is not the colour I chose.", "You sent the wrong colour.", "It came in another colour.",
        "The colour is wrong.", "That is not the colour that arrived.", "It came in a different shade.",
        "What I got has quite another colour.", "The one in the box has the wrong colour.",
        "It does not match the colour I asked for.", "Somebody mixed up the colours.",
        "I opened it and the colour was not right.", "The colour is not what I ordered.",
        "It is fine but for the colour, which is wrong.", "The one you sent is coloured differently.",
        "I asked for that colour and got another.", "Your packers picked the wrong colour.",
    ],
    "wrong item": [
        "You sent me something else.", "It is not what I ordered.", "There was another product in the box.",
        "I got the wrong item.", "Somebody else's order was in my parcel.", "You sent the wrong thing.",
        "What arrived is a different article.", "I received a product that I never ordered.",
        "The box held something quite different.", "You mixed up my order with another.",
        "That is not at all what came.", "Instead I unpacked something I have no use for.",
        "The parcel contained the wrong product.", "A completely different thing was delivered.",
        "I was sent another customer's goods.", "The thing I got is not the thing I bought.",
    ],
    "wrong size": [
        "It is too small.", "It is far too big.", "The size is wrong.", "It does not fit.",
        "You sent the wrong size.", "It is much smaller than described.", "It is a size too large.",
        "The measurements are not right.", "It will not fit anywhere.", "It came in the wrong size.",
        "It is half the size I expected.", "I need it larger than this.", "It is bigger than the page said.",
        "The size on the label is not the size I picked.", "It is too tight.", "It is too wide for the space.",
    ],
}  # fmt: skip

MOOD_FORMS = {
    "angry": [
        "This is not acceptable.", "I am really angry about this.", "I am furious.",
        "This is the worst service I have ever had.", "I demand an answer today.",
        "I will never buy from you again.", "What a disgrace.", "I have had enough of this.",
        "You should be ashamed.", "I want my money back at once.", "How dare you.",
        "This makes my blood boil.", "I am sick and tired of your shop.", "Do your job.",
        "I am very upset with you.", "I shall tell everyone how bad you are.",
    ],
    "calm": [
        "There is no hurry.", "Please let me know when you can.", "No rush at all.",
        "Take your time.", "Whenever it suits you is fine.", "I am sure we can sort it out.",
        "I can wait for a few days.", "These things happen.", "It is not urgent.",
        "Let me know how you would like to proceed.", "Just tell me what to do next.",
        "I do not mind waiting.", "A short answer will do.", "I only wanted you to know.",
        "Please advise.", "I leave it in your hands.",
    ],
    "cheerful": [
        "Otherwise I love your shop.", "You have been great so far.", "I still had to laugh about it.",
        "I am very pleased with everything else.", "Have a wonderful day.", "You are the best.",
        "Your shop always makes me smile.", "I am a happy customer all the same.",
        "Lots of love to the whole team.", "What fun it is to shop with you.",
        "I am in a good mood anyway.", "Hooray for your friendly staff.", "Life is good all the same.",
        "I smile every time your parcel comes.", "Keep up the lovely work.", "It made me giggle.",
    ],
    "worried": [
        "I am worried that it cannot be mended.", "I am afraid I did something wrong.",
        "I am quite anxious about this.", "I do not know what to do.", "Please help me, I am nervous.",
        "I fear that my money is gone.", "This keeps me awake at night.", "I hope it is not my fault.",
        "I am concerned about it.", "What if this happens again?", "I am so unsure what comes next.",
        "It troubles me a lot.", "I get scared when such things go wrong.", "I cannot stop thinking about it.",
        "Could you please tell me that it will be fine?", "I am uneasy about the whole matter.",
    ],
}  # fmt: skip

FILLERS = [
    "My cat sat on the box for an hour before I could open it.",
    "The postman was very kind, as he always is.",
    "I used to work in a shop myself, so I know how it goes.",
    "It has been raining here all week.",
    "My brother says I should simply have called.",
    "I read your reviews before I bought anything.",
    "We had guests that evening, which did not help.",
    "I kept all the wrapping, just in case.",
    "My grandmother taught me to write a proper letter.",
    "The kettle was boiling when the bell rang.",
    "I took some photos with my camera.",
    "Our dog barked at the van as usual.",
    "I looked for the receipt in every drawer.",
    "The children were at school at the time.",
    "I had a cup of tea first and then opened it.",
    "My neighbour is my witness.",
    "I have been a customer for many years.",
    "It is a long story, but I will keep it short.",
    "I tried the phone line, but the music never ended.",
    "The stairs in our building are steep, so I carried it up slowly.",
    "I am not good with computers, as you can tell.",
    "My husband thinks that I worry too much.",
    "The paper inside was a nice touch.",
    "I even asked at the post office.",
    "Next month I turn seventy, imagine that.",
    "I wrote to you once before about another matter.",
    "The garden is in bloom at the moment.",
    "My lunch went cold while I wrote this.",
    "I do hope your warehouse is warm in winter.",
    "The tape on the parcel was hard to cut.",
    "I showed it to my colleague, who agreed with me.",
    "You can reach me in the evening.",
]

ASKS = {
    "polite": [
        "Could you please look into it?", "I would be grateful for a reply.",
        "Would you kindly send a new one?", "May I have a refund, please?",
        "I would appreciate your help.", "Please tell me how to return it.",
        "Could someone call me back, please?", "I look forward to your answer.",
    ],
    "curt": [
        "Fix it.", "Refund.", "Send a new one.", "Call me.", "Reply today.", "Sort this out.",
        "I want an answer.", "Replace it.",
    ],
    "rambling": [
        "I suppose what I am asking is whether you could send another or give me my money back.",
        "Perhaps you can do something, perhaps not, but I thought that I should ask.",
        "If there is a form to fill in, send it, I have a good pen.",
        "You will know better than I do what comes next in such a case.",
        "My wife would like a refund, I would like a new one, so you choose.",
        "Whatever you decide, write to me and not to my daughter.",
        "I would come by in person if it were not so far.",
        "Tell me what you need from me and I will look for it.",
    ],
}  # fmt: skip


def seen_and_unseen(forms: list[str]) -> tuple[list[str], list[str]]:
    """Split a list of forms: every eighth one, counted from the eighth, is kept unseen."""
    return [f for i, f in enumerate(forms) if i % 8 != 7], forms[7::8]
